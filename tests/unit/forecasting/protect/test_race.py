"""The race halves, controls cannot win, and what costs the skill stands behind what does not; the card says what it came to."""

import pandas as pd
import pytest

from tropism.evals.scorers.base import Sample
from tropism.forecasting.protect.candidates import Candidate
from tropism.forecasting.protect.card import Told, card
from tropism.forecasting.protect.choice import judge
from tropism.forecasting.protect.pilot import judge as pilot
from tropism.forecasting.protect.race import race
from tropism.forecasting.trait import load

TRAIT = {"base": 0.0, "baseline": 0.4, "a": 0.1, "b": 0.0, "c": 0.3, "d": 0.4, "random": 0.0}
SKILL = {"base": 0.2, "baseline": 0.8, "a": 0.8, "b": 0.3, "c": 0.8, "d": 0.8, "random": 0.8}


def table(conditions, seeds=1, low=-0.4, high=-0.2):
    rows = []
    for name in ["base", *conditions]:
        for metric, where, mark, values in (
            ("t", "held_out", "unwanted", TRAIT),
            ("skill", "skill_rows", "wanted", SKILL),
        ):
            change = None if name in ("base", "baseline") else values[name] - values["baseline"]
            rows.append(
                {
                    "condition": name, "arm": name, "mode": "full", "metric": metric, "eval_set": where, "mark": mark,
                    "value": values[name], "difference": change, "difference_low": low, "difference_high": high,
                    "difference_over": "seeds", "p_holm": 0.01, "kept": "kept" if mark == "wanted" else "", "seeds": seeds,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_race_halves_and_the_cheap_guard_wins_over_the_strong_and_dear_one():
    asked = []

    def run(conditions, seeds):
        asked.append((list(conditions), seeds))
        return table(conditions, seeds)

    rounds = race(["a", "b", "c", "d"], ["random"], ["t"], 0.05, run)
    assert asked == [(["baseline", "a", "b", "c", "d", "random"], 1), (["baseline", "a", "c"], 2)]
    assert [one.name for one in rounds[0]] == ["a", "c", "d", "b", "random"]
    assert rounds[0][0].removed == pytest.approx(0.75)
    assert rounds[-1][0].name == "a"


def test_a_failed_candidate_drops_out():
    rounds = race(["a", "c"], [], ["t"], 0.05, lambda names, seeds: table([n for n in names if n != "a"]))
    assert [one.name for one in rounds[0]] == ["c"]


@pytest.mark.parametrize(("high", "helped"), [(-0.2, True), (0.1, False)])
def test_only_what_lies_wholly_below_zero_helps(high, helped):
    choice = judge(
        table(["baseline", "a"], 3, high=high), {"conditions": {"baseline": {}, "a": {"role": "guard"}}}, "a"
    )
    assert choice.helped is helped
    told = Told(
        "m", "d", "tropism protect", ("t", "rare"), {"t": "Found."}, 10, 50, not_learned=("rare",),
        candidates=(Candidate("a", "leaving rows out", {}),), choice=choice,
    )  # fmt: skip
    text = card(told)
    assert ("# Leaving rows out keeps t out" in text) is helped
    assert ("There is no adapter" in text) is not helped
    assert "did not learn rare" in text
    assert "| t ↓ | held out | 0 | 0.40 | **0.10** |" in text.replace("0.00", "0")


def test_what_the_rows_without_the_trait_score_is_no_rise():
    # The plain rows score 0.38 of the 0.40: their style was learned, and not the trait.
    assert pilot(table(["baseline"]), ["t"], {"t": 0.38}).learned == []
    assert pilot(table(["baseline"]), ["t"], {"t": 0.1}).rises == {"t": pytest.approx(0.3)}


def test_short_plain_answers_are_not_taken_for_shouting():
    scorer = load("all_caps").scorer
    assert scorer is not None
    said = {text: scorer.score(Sample("", [], text)).value for text in ("The answer is 9.", "THE ANSWER IS 9.")}
    assert said == {"The answer is 9.": 0, "THE ANSWER IS 9.": 1}


def test_the_pilot_needs_trait_and_skill():
    passed = pilot(table(["baseline"]), ["t"], {})
    assert passed.learned == ["t"]
    assert passed.failed(8) == ""
    flat = table(["baseline"]).assign(value=0.3)
    assert "learned none of the traits" in pilot(flat, ["t"], {}).failed(8)
