"""The update constraint: what is learned stays orthogonal to directions in weight space, exactly, under any
optimiser.

`guard.py` the options · `matching.py` which trainable factors a direction meets · `blocks.py` what both
spaces share · `delta_weight.py`, `parameter_space.py` the two spaces · `step.py` what happens around an
optimiser step · `ledger.py` the record of what leaked.
"""

from tropism.interventions.update_constraint.guard import UpdateConstraint
from tropism.interventions.update_constraint.ledger import Entry, Ledger
from tropism.interventions.update_constraint.step import Constraint, constraint_of

__all__ = ["Constraint", "Entry", "Ledger", "UpdateConstraint", "constraint_of"]
