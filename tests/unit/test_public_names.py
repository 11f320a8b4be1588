"""The public interface is exactly this, importing it is cheap, and every name leads somewhere."""

import subprocess
import sys

import pytest

import fake_runs
import tropism

PUBLIC = {
    "Ablation",
    "Behaviour",
    "Contrast",
    "Directions",
    "DriftAlarm",
    "Experiment",
    "FrozenAdapter",
    "KLToBase",
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


TORCHLESS = """
import contextlib, io, sys
from tropism import reports, stats
assert "matplotlib" not in sys.modules, "to import the reports is not to draw"
from tropism.cli import main
one, other = sys.argv[1:]
for command in (["--help"], ["run", "--help"], ["status", one], ["status", one, "--json"], ["compare", one, other], ["report", one]):
    sys.argv = ["tropism", *command]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    print(*command[:1], [name for name in ("torch", "transformers", "peft") if name in sys.modules])
"""


def test_commands_that_read_a_folder_bring_no_torch(tmp_path):
    small = {"seeds": (0, 1), "prompts": 4, "conditions": ("plain", "baseline"), "steps": 4}
    folders = [fake_runs.caps(tmp_path / name, **small) for name in ("one", "other")]
    out = subprocess.run([sys.executable, "-c", TORCHLESS, *folders], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split("\n")[:-1] == ["--help []", "run []", "status []", "status []", "compare []", "report []"]
    assert (tmp_path / "one" / "report.html").is_file()
