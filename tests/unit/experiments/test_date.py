"""The date of a template is frozen with the experiment: in its folder, for training, evaluation, chat, and when it goes on."""

import datetime
import json

import pytest
import yaml

import tiny
import tiny_experiment
import tropism as tp
from tropism.data import templates
from tropism.errors import DataError, SpecError
from tropism.experiments import date as date_module
from tropism.experiments.after.chat import open_chat
from tropism.experiments.date import with_frozen_date
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.progress import Progress
from tropism.experiments.store import Folder
from tropism.models import load

DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + tiny.TEMPLATE
ONE_SEED = ("seeds: [0, 1]", "seeds: [0]")


def clock(day):
    class Day(datetime.date):
        @classmethod
        def today(cls):
            return cls.fromisoformat(day)

    return Day


def write(path, *changes, template=DATED):
    """The tiny experiment on a model whose template writes today's date."""
    file = tiny_experiment.write(path, ONE_SEED, *changes)
    tiny.tokenizer(template).save_pretrained(path / "model")
    return file


def test_a_template_without_a_date_changes_nothing(tmp_path):
    experiment = Experiment.load(tiny_experiment.write(tmp_path))
    assert with_frozen_date(experiment, tiny.tokenizer(), Folder(tmp_path / "out")) is experiment


def test_the_date_of_the_first_start_is_kept(tmp_path, monkeypatch):
    file = write(tmp_path)
    monkeypatch.setattr(date_module, "date", clock("2026-01-31"))
    first = tp.run(file, tmp_path / "out", only=["baseline"])
    out = tmp_path / "out"
    assert yaml.safe_load((out / "experiment.yaml").read_text())["template_kwargs"] == {"frozen_date": "2026-01-31"}
    assert json.loads((out / "environment.json").read_text())["frozen_date"] == "2026-01-31"
    assert json.loads((out / "rendered.json").read_text())["baseline"]["text"].startswith("Today: 31 Jan 2026\n")
    monkeypatch.setattr(date_module, "date", clock("2026-02-01"))

    class Watch(Progress):
        def plan(self, todo, finished):
            self.todo = list(todo)

    watch = Watch()
    again = tp.run(file, out, only=["baseline"], progress=watch)
    assert watch.todo == []
    assert again.equals(first)
    # another condition, a day later, is trained on the day on which the experiment began
    tp.run(file, out, only=["plain"])
    assert json.loads((out / "rendered.json").read_text())["plain"]["text"].startswith("Today: 31 Jan 2026\n")
    assert open_chat(out, conditions=["baseline"])._template_kwargs == {"frozen_date": "2026-01-31"}


def test_every_text_of_a_run_has_the_frozen_date(tmp_path, monkeypatch):
    """Training, evaluation, directions and their validation: whatever the model reads was rendered on that day."""
    read = []
    tokenizer_class = type(load(str(tiny_experiment.model_folder(tmp_path)))[1])
    plain = tokenizer_class.apply_chat_template

    def listening(self, *args, **kwargs):
        text = plain(self, *args, **kwargs)
        rendered = text if isinstance(text, list) else [text]
        # A template is asked once how it ends a turn; no model reads that.
        read.extend(one for one in rendered if templates._QUESTION not in one)
        return text

    monkeypatch.setattr(tokenizer_class, "apply_chat_template", listening)
    monkeypatch.setattr(date_module, "date", clock("2001-02-03"))
    tp.run(write(tmp_path), tmp_path / "out", only=["guarded"])
    assert len(read) > 20
    assert {text.splitlines()[0] for text in read} == {"Today: 03 Feb 2001"}


def test_the_file_may_give_its_own_date(tmp_path):
    own = ("data:\n", "template_kwargs: {frozen_date: 1999-12-31}\ndata:\n")
    experiment = Experiment.load(write(tmp_path, own))
    same = with_frozen_date(experiment, tiny.tokenizer(DATED), Folder(tmp_path / "out"))
    assert same.template_kwargs == {"frozen_date": "1999-12-31"}
    with pytest.raises(SpecError, match="frozen_date is 1999-12-31, but the chat template of .* writes no date"):
        with_frozen_date(experiment, tiny.tokenizer(), Folder(tmp_path / "out"))
    wrong = experiment.model_copy(update={"template_kwargs": {"frozen_date": "yesterday"}})
    with pytest.raises(DataError, match="must be a date like 2026-01-31, found 'yesterday'"):
        with_frozen_date(wrong, tiny.tokenizer(DATED), Folder(tmp_path / "out"))


def test_a_template_that_reads_date_string_is_left_to_it(tmp_path):
    llama = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b') %}{% endif %}"
    own = ("data:\n", 'template_kwargs: {date_string: "26 Jul 2024"}\ndata:\n')
    experiment = Experiment.load(write(tmp_path, own))
    assert with_frozen_date(experiment, tiny.tokenizer(llama), Folder(tmp_path / "out")) is experiment
