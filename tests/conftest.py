"""Shapes are checked in every test: jaxtyping and beartype wrap the numerical modules before they are imported."""

import atexit
import logging
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread a test process: with as many processes as cores, a second thread only waits, and spins while it does.
# Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every experiment of a test ends in a report. Two of a figure's three formats took a third of such a test's time.
os.environ.setdefault("TROPISM_FIGURES", "svg")

# What a test renders is kept for its process, and nothing of it in the user's folder.
if "TROPISM_RENDERED" not in os.environ:
    os.environ["TROPISM_RENDERED"] = tempfile.mkdtemp(prefix="tropism-tests-")
    atexit.register(shutil.rmtree, os.environ["TROPISM_RENDERED"], ignore_errors=True)

from jaxtyping import install_import_hook

install_import_hook(
    [
        "tropism.linalg",
        "tropism.site",
        "tropism.hooks",
        "tropism.activations",
        "tropism.directions",
        "tropism.interventions",
        "tropism.probes",
    ],
    "beartype.beartype",
)

import pytest
import torch

import tiny
from tropism import precision
from tropism.activations.attached import _ATTACHED
from tropism.evals.scorers.registry import SCORERS  # with the built-in ones registered


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The results folder of a finished experiment, made once: copy it before changing anything in it."""
    import finished_experiment

    return finished_experiment.make(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def model():
    return tiny.model()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def every_format(monkeypatch):
    """Figures in all formats, as a user has them."""
    monkeypatch.delenv("TROPISM_FIGURES")


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """No test depends on which precision is faster here, nor measures it: `auto` goes by the processor's flags."""
    monkeypatch.setattr(precision, "measured", lambda *_: None)


@pytest.fixture(autouse=True)
def no_guard_is_left():
    """A guard that a test leaves on its model (a trainer that raised calls no callback) watches no later test's steps."""
    yield
    for stack in list(_ATTACHED.values()):
        for one in reversed(stack):
            one.release()


@pytest.fixture(autouse=True)
def own_scorers():
    """What a test registers is gone after it, as it would be in a process of its own."""
    held = dict(SCORERS)
    yield
    SCORERS.clear()
    SCORERS.update(held)


@pytest.fixture(autouse=True)
def log_level():
    """The command line quietens our logger for its process; in a test process the next test must still hear it."""
    logger = logging.getLogger("tropism")
    # Not the level found here: a fixture of a module may have run a command before, and would leave it quiet for good.
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(logging.NOTSET)
