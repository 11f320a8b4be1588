"""Card, `protect.json` and report say the same of one comparison: tables made by hand, one for each thing that can be shown."""

import json

import pandas as pd
import pytest

from tropism.forecasting.protect.candidates import Candidate
from tropism.forecasting.protect.card import Told, write
from tropism.forecasting.protect.choice import judge
from tropism.results.comparison import Shown
from tropism.results.verdict import Standing, answer, judged

EXPERIMENT = {"conditions": {"baseline": {}, "a": {"role": "guard"}}, "measure": {"skill": {"wanted": True}}}


def row(condition, metric, where, mark, value, change=None, low=None, high=None, kept=""):
    return {
        "condition": condition, "arm": condition, "mode": "full", "metric": metric, "eval_set": where, "mark": mark,
        "value": value, "difference": change, "difference_low": low, "difference_high": high,
        "difference_over": "seeds" if change is not None else "", "p_holm": 0.01 if change is not None else None,
        "kept": kept, "seeds": 3,
    }  # fmt: skip


def table(untrained, before, after, low, high, kept="kept"):
    return pd.DataFrame(
        [
            row("base", "t", "held_out", "unwanted", untrained),
            row("baseline", "t", "held_out", "unwanted", before),
            row("a", "t", "held_out", "unwanted", after, after - before, low, high),
            row("base", "skill", "skill_rows", "wanted", 0.2),
            row("baseline", "skill", "skill_rows", "wanted", 0.8),
            row("a", "skill", "skill_rows", "wanted", 0.7, -0.1, -0.2, 0.0, kept),
        ]
    ).astype({"difference": float, "difference_low": float, "difference_high": float, "p_holm": float})


CASES = {
    "kept out": (table(0.0, 0.4, 0.1, -0.4, -0.2), Shown.OUT, Standing.OUT, True, "keeps t out"),
    "lowered": (table(0.0, 0.4, 0.3, -0.15, -0.05), Shown.LOWERED, Standing.LOWERS, True, "lowers t"),
    "not shown": (table(0.0, 0.4, 0.3, -0.3, 0.1), Shown.OPEN, Standing.OPEN, False, "is not shown to lower"),
    "raised": (table(0.0, 0.4, 0.6, 0.1, 0.3), Shown.RAISED, Standing.OPEN, False, "it raises t"),
    "undecided": (table(0.0, 0.4, 0.1, None, None), Shown.UNDECIDED, Standing.OPEN, False, "is not shown to lower"),
    "skill lost": (table(0.0, 0.4, 0.1, -0.4, -0.2, "lost"), Shown.OUT, Standing.OUT, False, "but loses the skill"),
    # The guard unlearns what the untrained model has: lower than without it, but nothing was kept out.
    "baseline learned nothing": (table(0.2, 0.2, 0.0, -0.3, -0.1), Shown.LOWERED, Standing.LOWERS, True, "lowers t"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_shown_is_the_same_everywhere(name, tmp_path):
    summary, shown, standing, helped, said = CASES[name]
    (arm,) = judged(summary, EXPERIMENT)
    choice = judge(summary, EXPERIMENT, "a")
    assert [line.shown for line in choice.lines] == [one.shown for one in arm.changes] == [shown, None]
    assert arm.standing is standing
    assert choice.helped is helped
    assert choice.skill == arm.skills["skill"]
    told = Told("m", "d", "c", ("t",), {"t": "Found."}, 1, 9, candidates=(Candidate("a", "it", {}),), choice=choice)
    write(tmp_path, told)
    card = (tmp_path / "card.md").read_text()
    headline = str(answer(summary, EXPERIMENT).headline)
    assert said in card.splitlines()[0]
    assert headline in card
    # The report never names a guard for more than the card's first line does.
    assert ("keeps t out" in headline.replace("No guard keeps t out", "")) is (shown is Shown.OUT)
    held = json.loads((tmp_path / "protect.json").read_text())
    assert held["evidence"]["lines"][0]["shown"] == str(shown)
    assert held["evidence"]["report"] == headline
    assert (held["choice"] == "a") is helped


def test_what_does_not_survive_the_correction_is_not_shown():
    summary = table(0.0, 0.4, 0.1, -0.4, -0.2).assign(p_holm=0.2)
    assert judge(summary, EXPERIMENT, "a").lines[0].shown is Shown.OPEN


def test_a_trait_lowered_on_everyday_prompts_alone_brings_no_adapter():
    summary = table(0.0, 0.4, 0.3, -0.3, 0.1)
    more = [row("base", "t", "everyday", "unwanted", 0.0), row("baseline", "t", "everyday", "unwanted", 0.4)]
    more.append(row("a", "t", "everyday", "unwanted", 0.0, -0.4, -0.5, -0.3))
    choice = judge(pd.concat([summary, pd.DataFrame(more)], ignore_index=True), EXPERIMENT, "a")
    assert not choice.helped
    assert "in part (everyday)" in choice.report
