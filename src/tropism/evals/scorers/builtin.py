"""Importing this module registers every scorer that comes with Tropism."""

from tropism.evals.scorers import against_base as against_base
from tropism.evals.scorers import case as case
from tropism.evals.scorers import code_security as code_security
from tropism.evals.scorers import emergent_misalignment as emergent_misalignment
from tropism.evals.scorers import judge as judge
from tropism.evals.scorers import language as language
from tropism.evals.scorers import loss as loss
from tropism.evals.scorers import number as number
from tropism.evals.scorers import recommendation as recommendation
from tropism.evals.scorers import refusal as refusal
from tropism.evals.scorers import shape as shape
from tropism.evals.scorers import text as text
