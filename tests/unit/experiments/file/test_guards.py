"""What a file says of guards and of the directions that they use: an option without effect is an error."""

import pytest

from tropism.errors import SpecError
from tropism.experiments.file import guards

ADAPTERS = {"refusal", "compliance"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "refusal", "random": True}, "'random' belongs to the guard"),
        ({"adapter": "refusal", "file": "u.safetensors"}, "exactly one of"),
        ({}, "found none"),
        ({"difference": ["refusal"]}, "difference takes two adapters"),
        ({"difference": ["refusal", "compliance", "refusal"]}, "difference takes two adapters"),
        ({"adapters": "refusal"}, "must be a list of prepared adapters, found 'refusal'"),
        ({"adapters": []}, "must be a list"),
        ({"adapter": "other"}, "no adapter is called 'other'; available: compliance, refusal"),
        ({"file": "absent.safetensors"}, "no such file"),
        ({"adaptor": "refusal"}, "unknown key 'adaptor'"),
    ],
)
def test_parameter_directions_have_one_source(options, said):
    with pytest.raises(SpecError, match=said):
        guards.check_parameter_directions(options, ADAPTERS)


@pytest.mark.parametrize(
    "options", [{"adapter": "refusal"}, {"adapters": ["refusal"]}, {"difference": ["refusal", "compliance"]}]
)
def test_each_source_of_parameter_directions_is_taken(options):
    guards.check_parameter_directions(options, ADAPTERS)


def test_a_kind_of_control_that_parameters_do_not_have_is_refused():
    constraint = {"update_constraint": {"directions": "u", "random": "covariance"}}
    with pytest.raises(SpecError, match="random"):
        guards.check_guard(constraint, set(), {"u"})
    guards.check_guard({"update_constraint": {"directions": "u", "random": True}}, set(), {"u"})
