"""Sets rendered in several processes are those that one process renders; what they cannot do is said by who asked."""

import json

import pytest

import tiny
import tiny_experiment
from tropism.errors import DataError
from tropism.experiments import render_ahead, rendered
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.rendered import RenderedSets

ROWS = [{"prompt": f"Question {index}?", "completion": f"Answer {index}."} for index in range(40)]


@pytest.fixture
def two_sets(tmp_path, monkeypatch):
    """The sets of an experiment whose conditions train on two, and what was rendered in this process."""
    monkeypatch.setenv("TROPISM_RENDERED", str(tmp_path / "kept"))
    monkeypatch.setattr(render_ahead, "WORTH_BYTES", 1)
    monkeypatch.setattr(render_ahead, "cores", lambda: 2)
    here = []
    stream = rendered.stream_rows
    monkeypatch.setattr(rendered, "stream_rows", lambda *given: here.append(given[4]) or stream(*given))

    def made(*rows):
        file, text = tmp_path / "rows.jsonl", tiny_experiment.TEXT.format(model="nobody/nothing")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        old = "source: word_problems, size: 8, transform: uppercase"
        assert old in text
        (tmp_path / "tiny.yaml").write_text(
            text.replace(old, f"source: {file}, transform: uppercase", 1), encoding="utf-8"
        )
        e = Experiment.load(tmp_path / "tiny.yaml")
        sets = RenderedSets(e, tiny.tokenizer(), 512)
        return e, sets, [sets.of_condition(name, 0) for name in e.trained]

    return made, here


def test_what_two_processes_render_is_what_one_does(two_sets, tmp_path, monkeypatch):
    made, here = two_sets
    e, sets, wanted = made(*ROWS)
    render_ahead.render_ahead(sets, wanted)
    assert len(here) == 1  # the other one was rendered elsewhere
    ahead = {name: sets.condition(name, 0) for name in e.trained}
    assert len(here) == 1
    render_ahead.render_ahead(sets, wanted)
    assert len(here) == 1  # nothing is missing any more
    monkeypatch.setenv("TROPISM_RENDERED", str(tmp_path / "anew"))
    for name, one in ahead.items():
        alone = RenderedSets(e, tiny.tokenizer(), 512).condition(name, 0)
        assert list(one.rows) == list(alone.rows)
        assert (one.record, one.said, one.content) == (alone.record, alone.said, alone.content)
        assert list(one.taught()) == list(alone.taught())


def test_an_error_is_raised_where_the_set_is_asked_for(two_sets):
    made, _ = two_sets
    e, sets, wanted = made(*ROWS, {"prompt": "An unanswered one"})
    render_ahead.render_ahead(sets, wanted)
    for name in e.trained:
        with pytest.raises(DataError, match=f"condition {name}: 1 of 41 examples cannot be learned from"):
            sets.condition(name, 0)


@pytest.mark.parametrize(("name", "value"), [("WORTH_BYTES", 1 << 20), ("cores", lambda: 1)])
def test_small_sets_and_a_single_core_need_no_process(two_sets, monkeypatch, name, value):
    made, here = two_sets
    monkeypatch.setattr(render_ahead, name, value)
    _, sets, wanted = made(*ROWS)
    render_ahead.render_ahead(sets, wanted)
    assert here == []
