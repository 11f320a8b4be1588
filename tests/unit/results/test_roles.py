"""What a condition is for: the file's word first, then its structure, never its name."""

import pytest

import tiny_experiment
from tropism.errors import SpecError
from tropism.experiments.file.experiment import Experiment
from tropism.results.roles import Role, assumed, role_of

CONDITIONS = {
    "plain_sft": {},
    "ceiling": {"data": {"transform": "plain"}},
    "caft": {"guard": {"ablation": {"directions": "d"}}},
    "control": {"guard": {"ablation": {"directions": "d", "random": True}}},
    "composed": {"guard": [{"ablation": {"directions": "d"}}, {"gradient_projection": {"random": "covariance"}}]},
    "labels": {"data": {"transform": {"mixture": {"random": 0.25}}}, "guard": {"gradient_routing": {}}},
    "less": {"after": {"shrinkage": {"norm": "caft"}}},
    "edited": {"after": {"safe_lora": {"directions": "p"}}},
    "prompted": {"system_prompt": "x"},
    "mixed": {"data": {"also": [{"source": "x"}]}},
}
DESCRIBED = {"baseline": "plain_sft", "conditions": CONDITIONS}


def test_roles_follow_from_structure():
    roles = {name: role_of(DESCRIBED, name) for name in ("base", *CONDITIONS)}
    assert roles == {
        "base": Role.BASE,
        "plain_sft": Role.BASELINE,
        "ceiling": Role.CEILING,
        "caft": Role.GUARD,
        "control": Role.CONTROL,
        "composed": Role.CONTROL,
        "labels": Role.CONTROL,
        "less": Role.CONTROL,
        "edited": Role.GUARD,
        "prompted": Role.GUARD,
        "mixed": Role.GUARD,
    }


@pytest.mark.parametrize("name", ["placebo", "random", "random_pca", "placebo_prompt", "baseline_2", "plain"])
def test_a_name_says_nothing(name):
    described = {"conditions": {name: {"guard": {"ablation": {"directions": "random"}}}}}
    assert role_of(described, name) is Role.GUARD


@pytest.mark.parametrize("role", ["guard", "control", "reference"])
@pytest.mark.parametrize("name", [name for name in CONDITIONS if name not in ("plain_sft", "ceiling")])
def test_the_file_has_the_last_word(name, role):
    described = {"baseline": "plain_sft", "conditions": {name: {**CONDITIONS[name], "role": role}}}
    assert role_of(described, name) == role
    assert not assumed(described)


def test_a_reference_on_plain_data_is_the_ceiling():
    described = {"conditions": {"plain": {"data": {"transform": "plain"}, "role": "reference"}}}
    assert role_of(described, "plain") is Role.CEILING
    described["conditions"]["plain"]["role"] = "control"
    assert role_of(described, "plain") is Role.CONTROL


def test_what_structure_leaves_open_is_said():
    assert assumed(DESCRIBED) == {"less": Role.CONTROL, "prompted": Role.GUARD, "mixed": Role.GUARD}


@pytest.mark.parametrize("role", ["guard", "control"])
def test_the_baseline_is_the_baseline(tmp_path, role):
    file = tiny_experiment.write(tmp_path, ("baseline: {}", f"baseline: {{role: {role}}}"))
    with pytest.raises(SpecError, match=f"baseline is what guards and controls are compared with, found '{role}'"):
        Experiment.load(file)


def test_an_unknown_role_is_named(tmp_path):
    file = tiny_experiment.write(tmp_path, ("baseline: {}", "baseline: {}\n  other: {role: placebo}"))
    with pytest.raises(
        SpecError, match="conditions.other.role: input should be 'control', 'guard' or 'reference', found 'placebo'"
    ):
        Experiment.load(file)
