"""Training sets that are kept: the same as rendered anew, made once, and never trusted when damaged."""

import json
import logging
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

import chat_templates
import tiny
import tiny_experiment
from tropism.data.sources import word_problems
from tropism.errors import DataError
from tropism.experiments import checks, identity, prepare, rendered, training_rows
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.prepared import EvaluationSets
from tropism.experiments.rendered import RenderedSets
from tropism.experiments.training_rows import RowsRecord

TEMPLATES = {"tiny": tiny.TEMPLATE} | {
    name: chat_templates.text_of(name)
    for name in ("qwen3", "qwen3_training", "gemma", "llama3_2", "gptoss")
    if name in chat_templates.NAMES
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TROPISM_RENDERED", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def made(monkeypatch):
    """Counts the sets that are rendered."""
    counted = []
    stream = rendered.stream_rows

    def recorded(examples, tokenizer, kwargs, limit, what, *rest):
        counted.append(what)
        return stream(examples, tokenizer, kwargs, limit, what, *rest)

    monkeypatch.setattr(rendered, "stream_rows", recorded)
    return counted


def experiment(path, *changes, **overrides):
    """The tiny experiment, of a model that nobody loads here."""
    text = tiny_experiment.TEXT.format(model="nobody/nothing")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    (path / "tiny.yaml").write_text(text, encoding="utf-8")
    return Experiment.load(path / "tiny.yaml", overrides=overrides)


def rows_file(path, *rows):
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def of_file(file, **options):
    return ("source: word_problems, size: 8, transform: uppercase", f"source: {file}" + "".join(
        f", {name}: {value}" for name, value in options.items()
    ))  # fmt: skip


MIXED = (
    {"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\nHello, wörld \u2028."},
        {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Fine."},
    ]},
    {"text": "Call me Ishmael."},
    {"prompt": "Why?", "completion": "Because.", "route": "forget"},
    {"prompt": "An unanswered one"},
)  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_kept_rows_are_those_that_are_rendered_anew_field_by_field(tmp_path, template, made, caplog):
    e = experiment(tmp_path, of_file(rows_file(tmp_path, *MIXED), on_bad_row="skip"), train={"max_length": 400})
    tokenizer = tiny.tokenizer(TEMPLATES[template])
    options = e.train_options("baseline")
    examples = prepare.training_examples(e, "baseline", 0)
    expected, record = training_rows.training_rows(
        examples, tokenizer, e.template_kwargs, 512, "condition baseline", options.max_length, options.overflow
    )
    said = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = RenderedSets(e, tokenizer, 512).condition("baseline", 0)
        said.append(caplog.messages)
        assert list(found.rows) == expected
        assert [found.rows[index] for index in (-1, 0)] == [expected[-1], expected[0]]
        assert found.record == record == RowsRecord.of_plain(json.loads(json.dumps(record.plain())))
        assert found.content == identity.digest([[x.id, list(x.content), x.target] for x in examples])
    assert made == ["condition baseline"]
    assert sum(record.skipped.values()) == 1
    assert said[0] == said[1] != []


def test_a_set_is_rendered_once_for_conditions_seeds_and_processes(tmp_path, made):
    e, tokenizer = experiment(tmp_path), tiny.tokenizer()
    checks.check_data(e, EvaluationSets(e), tokenizer, 512)
    assert made == ["condition plain", "condition baseline"]  # and `guarded`, which trains on the same
    again = pickle.loads(pickle.dumps(RenderedSets(e, tokenizer, 512)))
    assert again.condition("guarded", 1).rows[0] == RenderedSets(e, tokenizer, 512).condition("baseline", 0).rows[0]
    assert len(made) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"train": {"size": 7}}},
        {"data": {"train": {"supervise": "last_turn"}}},
        {"data": {"train": {"system_prompt": "Be kind."}}},
        {"data": {"train": {"transform": "plain"}}},
        {"train": {"max_length": 300}},
        {"template_kwargs": {"x": 1}},
    ],
)
def test_what_changes_the_rows_is_another_set(tmp_path, made, change):
    tokenizer = tiny.tokenizer()
    for overrides in ({}, change):
        RenderedSets(experiment(tmp_path, **overrides), tokenizer, 512).condition("baseline", 0)
    assert len(made) == 2


def test_other_tokenizers_limits_and_contents_of_a_file_are_other_sets(tmp_path, made):
    file = rows_file(tmp_path, {"prompt": "Hi", "completion": "Ho"})
    e = experiment(tmp_path, of_file(file), ("  plain: {data: {transform: plain}}\n", ""))
    other = tiny.tokenizer(tiny.TEMPLATE.replace("\n", " "))
    added = tiny.tokenizer()
    added.add_tokens(["Hi"])
    for tokenizer, limit in ((tiny.tokenizer(), 512), (tiny.tokenizer(), 511), (other, 512), (added, 512)):
        RenderedSets(e, tokenizer, limit).condition("baseline", 0)
    assert len(made) == 4
    rows_file(tmp_path, {"prompt": "Hi", "completion": "Oh"})
    assert "Oh" in RenderedSets(e, tiny.tokenizer(), 512).condition("baseline", 0).rows[0].rendered.text
    assert len(made) == 5


def test_a_seeded_transform_is_a_set_a_seed(tmp_path, made):
    mixture = ("transform: uppercase", "transform: {mixture: {fraction: 0.5}}")
    sets = RenderedSets(experiment(tmp_path, mixture), tiny.tokenizer(), 512)
    found = [[row.rendered.text for row in sets.condition("baseline", seed).rows] for seed in (0, 1)]
    assert found[0] != found[1]
    assert len(made) == 2


def test_what_a_hub_holds_today_decides_and_not_its_name(tmp_path, monkeypatch, made):
    monkeypatch.setattr("tropism.data.sources.source_of", lambda name: word_problems.WORD_PROBLEMS)
    monkeypatch.setattr("tropism.data.sources.settled", lambda *_: False)
    e = experiment(tmp_path)
    first = RenderedSets(e, tiny.tokenizer(), 512).condition("baseline", 0)
    assert RenderedSets(e, tiny.tokenizer(), 512).condition("baseline", 0).content == first.content
    assert len(made) == 1
    monkeypatch.setattr(word_problems, "NAMES", ("Otto", "Anna"))
    assert RenderedSets(e, tiny.tokenizer(), 512).condition("baseline", 0).content != first.content
    assert len(made) == 2


@pytest.mark.parametrize("name", [rendered.ROWS, rendered.KEYS, rendered.STAMP])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_set_is_rendered_anew(tmp_path, place, made, name, damage):
    e, tokenizer = experiment(tmp_path), tiny.tokenizer()
    expected = list(RenderedSets(e, tokenizer, 512).condition("baseline", 0).rows)
    (file,) = place.glob(f"*/{name}")
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes(flipped if damage == "flipped" else content[:middle])
    # A flip inside the stamp's own numbers is no damage that a hash can see; inside a file's hash it is.
    if (name, damage) == (rendered.STAMP, "flipped"):
        file.write_bytes(content.replace(b'"rows.arrow": "', b'"rows.arrow": "0'))
    assert list(RenderedSets(e, tokenizer, 512).condition("baseline", 0).rows) == expected
    assert len(made) == 2
    assert len(list(place.iterdir())) == 1


def test_a_set_that_is_refused_leaves_nothing(tmp_path, place):
    e = experiment(tmp_path, of_file(rows_file(tmp_path, {"prompt": "Hi"})))
    with pytest.raises(DataError, match="condition baseline: 1 of 1 examples cannot be learned from"):
        RenderedSets(e, tiny.tokenizer(), 512).condition("baseline", 0)
    assert list(place.iterdir()) == []


def test_processes_that_render_the_same_set_at_once_end_with_one(tmp_path, place):
    e = experiment(tmp_path)

    def read(_):
        return RenderedSets(e, tiny.tokenizer(), 512).condition("baseline", 0).rows[0]

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(read, range(4))
    assert all(row == first for row in others)
    assert len(list(place.iterdir())) == 1


def test_sets_used_longest_ago_make_room(tmp_path, place, monkeypatch):
    for number, size in enumerate((5, 6, 7)):
        RenderedSets(experiment(tmp_path, data={"train": {"size": size}}), tiny.tokenizer(), 512).condition(
            "baseline", 0
        )
        for stamp in place.glob(f"*/{rendered.STAMP}"):
            if stamp.stat().st_mtime > 1e9:
                os.utime(stamp, (number, number))
    monkeypatch.setattr(rendered, "MOST_BYTES", sum(f.stat().st_size for f in place.rglob("*") if f.is_file()))
    RenderedSets(experiment(tmp_path, data={"train": {"size": 8}}), tiny.tokenizer(), 512).condition("baseline", 0)
    assert sorted(rendered.RowTable(rows).__len__() for rows in place.glob("*/rows.arrow")) in ([7, 8], [6, 7, 8])
    assert 5 not in [len(rendered.RowTable(rows)) for rows in place.glob("*/rows.arrow")]


def test_what_else_lies_in_the_folder_stays(tmp_path, place, monkeypatch):
    for name in ("mine/notes.txt", "abc/SET.json", ".mine.partial/x"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text("mine")
    (place / "a file").write_text("mine")
    abandoned = place / f".{16 * '0'}.{12 * '0'}.partial"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    monkeypatch.setattr(rendered, "MOST_BYTES", 0)
    made = RenderedSets(experiment(tmp_path), tiny.tokenizer(), 512).condition("baseline", 0)
    assert sorted(path.name for path in place.iterdir()) == sorted(
        ["mine", "abc", ".mine.partial", "a file", made.folder.name]
    )
    assert all((place / name).read_text() == "mine" for name in ("mine/notes.txt", "abc/SET.json", "a file"))


def test_where_nothing_can_be_kept_it_is_said_and_goes_on(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TROPISM_RENDERED", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert RenderedSets(experiment(tmp_path), tiny.tokenizer(), 512).condition("baseline", 0).rows
    assert "rendered chats cannot be kept in" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"template_kwargs": {"enable_thinking": False}},
        {"adapters": {"kept": {"data": {"supervise": "last_turn"}}}},
        {"adapters": {"kept": {"data": {"on_bad_row": "skip"}}}},
        {"chat_template": "other.jinja"},
    ],
)
def test_a_prepared_adapter_is_another_one_where_it_learns_other_rows(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jinja").write_text(tiny.TEMPLATE + " ")
    added = ("train: {max_steps", "adapters:\n  kept: {data: {source: word_problems, size: 4}}\ntrain: {max_steps")
    one, other = (
        identity.adapter_identity(experiment(tmp_path, added, **overrides), {"name": "m"}, "kept")
        for overrides in ({}, change)
    )
    assert one != other
