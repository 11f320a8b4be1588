"""The public interface is exactly this, importing it is cheap, and every name leads somewhere."""

import subprocess
import sys

import pytest

import tropism

PUBLIC = {
    "Ablation",
    "Behaviour",
    "Contrast",
    "Directions",
    "Experiment",
    "FrozenAdapter",
    "GradientCache",
    "GradientProjection",
    "GradientRouting",
    "Intervention",
    "InterventionCallback",
    "LogisticProbe",
    "MeanDifference",
    "PCA",
    "ParameterDirections",
    "PressureLog",
    "Rendered",
    "RouteCollator",
    "SAELatents",
    "Site",
    "Steering",
    "UpdateConstraint",
    "__version__",
    "ablation_mode",
    "calibrate_placebo",
    "capture",
    "collect_gradients",
    "decoder_layers",
    "errors",
    "find_directions",
    "forecast",
    "import_directions",
    "keep_columns",
    "mean_activations",
    "models",
    "parameter_directions",
    "parameter_pressure",
    "predicted_and_realised_shift",
    "pressure",
    "projection",
    "random_pressure",
    "register_blocks",
    "render",
    "run",
    "show_report",
    "sites",
    "stats",
    "two_adapters",
    "validate_directions",
    "with_system_prompts",
}


def test_the_namespace_is_exact():
    assert set(tropism.__all__) == PUBLIC
    assert set(dir(tropism)) == set(tropism.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_leads_somewhere(name):
    assert getattr(tropism, name) is not None


def test_a_name_that_is_not_public_raises():
    with pytest.raises(AttributeError, match="module 'tropism' has no attribute 'Sight'"):
        tropism.Sight  # noqa: B018


HEAVY = ("torch", "transformers", "peft", "pandas", "matplotlib", "numpy")


@pytest.mark.parametrize("statement", ["import tropism", "import tropism.cli", "import tropism.errors"])
def test_importing_brings_nothing_heavy(statement):
    probe = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_statistics_and_reports_bring_no_torch():
    probe = "import sys, tropism.stats, tropism.reports.report, tropism.reports.terminal; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
