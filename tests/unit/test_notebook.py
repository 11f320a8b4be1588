"""What a notebook shows of an object is small, tells what it is, and can carry no markup of its own."""

import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

import fake_runs
import tropism as tp
from tropism import notebook
from tropism.experiments.progress import NotebookProgress, Progress, default_progress
from tropism.results.folder import load

EVIL = "<script>alert('x')</script>"
FILE = """
name: tiny
question: "{evil}"
model: nobody/tiny
seeds: [0, 1]
data: {{train: {{source: word_problems, size: 8}}, held_out: {{source: word_problems, size: 3, split: test}}}}
conditions:
  baseline: {{note: "{evil}"}}
  routed: {{guard: {{gradient_routing: {{}}}}}}
measure: {{loss: {{scorer: response_loss, on: [held_out]}}}}
"""


class Reader(HTMLParser):
    """The tags and the text of a page, and that every tag that was opened was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], set(), []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def objects(tmp_path):
    d = tp.Directions(
        {tp.Site(1): torch.ones(2, 8) + torch.eye(2, 8), tp.Site(2): torch.ones(8)},
        {"method": EVIL, "model": {"name": EVIL}},
    )
    u = tp.ParameterDirections.of_factors({"proj": (torch.eye(3)[:, :1], torch.eye(4)[:1])}, {"method": EVIL})
    guard = tp.GradientProjection(d) | tp.GradientRouting()
    fake_runs.caps(tmp_path / "caps", prompts=4)
    return {
        "Directions at 2 sites": d, "1 directions in parameters": u, "Guards, in order": guard,
        "tiny: ": tp.Experiment.from_text(FILE.format(evil=EVIL)), "Results of caps": load(tmp_path / "caps"),
    }  # fmt: skip


def test_every_object_shows_itself_small_and_escaped(tmp_path):
    for title, held in objects(tmp_path).items():
        page = held._repr_html_()
        read = Reader(page)
        assert read.tags <= {"div", "b", "table", "tr", "td", "th"}, title
        assert "".join(read.text).startswith(title)
        assert len(page) < 5000
    shown = "".join(Reader(objects(tmp_path)["Guards, in order"]._repr_html_()).text)
    assert "GradientProjection" in shown
    assert "GradientRouting" in shown
    assert "acts in training only" in shown


def test_long_texts_and_many_rows_are_cut_and_said():
    read = Reader(notebook.table("t", ("a",), [["x" * 999]] * 99, "note"))
    assert max(map(len, read.text)) == notebook.LONGEST
    assert read.text[-2:] == ["99 rows, the first 40 are shown", "note"]


def test_the_report_is_in_a_frame_whose_text_is_the_file(tmp_path):
    fake_runs.caps(tmp_path / "caps", prompts=4)
    shown = tp.show_report(tmp_path / "caps", height=300)
    held = {}

    class Frame(HTMLParser):
        def handle_starttag(self, tag, attrs):
            held[tag] = dict(attrs)

    Frame().feed(shown._repr_html_())
    assert list(held) == ["iframe"]
    assert held["iframe"]["srcdoc"] == shown.path.read_text(encoding="utf-8")


def test_progress_in_a_notebook_is_one_line_that_lives_and_one_for_each_run(monkeypatch):
    pages = []
    display = SimpleNamespace(
        HTML=str, display=lambda page, display_id: SimpleNamespace(update=lambda page: pages.append(page))
    )
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert type(default_progress()) is Progress
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    progress = default_progress()
    assert isinstance(progress, NotebookProgress)
    progress.plan(["a/seed-0", "b/seed-0"], 0)
    progress.start("a/seed-0", 1, 2)
    progress.phase("training", 3, 8, {"loss": 1.5})
    assert "run 1 of 2, a/seed-0: training 3 of 8, loss 1.500" in Reader(pages[-1]).text
    progress.finish("a/seed-0", 12.0, f"failed: {EVIL}")
    assert Reader(pages[-1]).text[-1] == f"a/seed-0: failed: {EVIL}, 12 s"


@pytest.mark.parametrize("enabled", [True, False])
def test_a_model_loads_without_a_bar_and_bars_are_as_they_were(tmp_path, capfd, enabled):
    from transformers.utils import logging

    import tiny_experiment
    from tropism import models

    folder = tiny_experiment.model_folder(tmp_path)
    capfd.readouterr()
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
    try:
        models.load(str(folder))
        assert logging.is_progress_bar_enabled() is enabled
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    assert "Loading weights" not in capfd.readouterr().err
