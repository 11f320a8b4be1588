"""What the report says of a pair of guards by itself, on a simulated experiment."""

import pytest

import fake_runs
from tropism.results.folder import load
from tropism.results.summary import summary_table
from tropism.studies.concept_ablation import from_table


@pytest.fixture(scope="module")
def caps(tmp_path_factory):
    return load(fake_runs.caps(tmp_path_factory.mktemp("caps") / "caps", prompts=24, steps=3))


def test_the_hypotheses_compare_an_ablation_with_a_projection_on_the_same_directions(caps):
    summary = summary_table(caps.results, caps.experiment, caps.scores)
    assert from_table.pairs(summary, caps.experiment) == [from_table.Pair("caft", "backward_caft")]
    (section,) = from_table.sections(summary, caps)
    assert len(section.claims) == 4
    means = (
        caps.results[caps.results["metric"] == "caps_rate"]
        .groupby(["eval_set", "condition"])["value"]
        .mean()["in_domain"]
    )
    assert section.claims[0].numbers["E_forward"]["value"] == pytest.approx(means["baseline"] - means["caft"])
