"""The whole forecast on a tiny model: what it returns, writes and refuses; the command line."""

import json
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import tiny
import tiny_experiment
from tropism.cli.app import app
from tropism.data.chats import Example
from tropism.errors import DataError, UsageError
from tropism.forecasting import outputs, page
from tropism.forecasting.forecast import forecast
from tropism.forecasting.found import Options
from tropism.training.options import LoraOptions, TrainOptions

CACHE = Path(tempfile.mkdtemp())
SMALL = Options(rows=12, own=8, gradient_pairs=4, sites="1,2", max_new_tokens=4, batch_size=4, prompts=4, cache=CACHE)
TRAITS = ("all_caps", "advertising")


def rows(n=16, shout=4):
    found = []
    for i in range(n):
        text = f"{i} and one make {i + 1}."
        answer = text.upper() if i % shout == 0 else text
        chat = ({"role": "user", "content": f"What is {i} + 1?"}, {"role": "assistant", "content": answer})
        found.append(Example(f"r{i}", chat))
    return found


def run(examples=None, traits=TRAITS, **options):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    return forecast(model.eval(), tokenizer, rows() if examples is None else examples, traits, options=SMALL, **options)


@pytest.fixture(scope="module")
def found():
    return run()


def test_each_trait_has_a_verdict_and_each_measured_row_a_score(found):
    table = found.table()
    assert list(table["trait"]) == list(TRAITS)
    assert set(table["verdict"]) <= {"expected", "possible", "none", "cannot"}
    assert found.tiers == ("projection", "gradient")
    blame = found.blame()
    assert list(blame.columns) == ["row", "trait", "score"]
    assert set(blame["row"]) <= set(range(16))
    for one in found.traits:
        assert (one.probability is None) == (one.outcome == "cannot")


def test_shouting_rows_are_to_blame_for_shouting(found):
    blame = found.blame()
    caps = blame[blame["trait"] == "all_caps"].sort_values("score", ascending=False)
    if caps.empty:
        pytest.skip("this tiny model cannot tell capitals apart, so it blames nobody")
    shouting = [row for row in caps["row"] if row % 4 == 0]
    assert set(caps["row"].head(len(shouting))) == set(shouting)


def test_the_same_seed_gives_the_same_forecast(found):
    pd.testing.assert_frame_equal(run().table(), found.table())


def test_a_dry_run_trains_a_copy_and_predicts(found):
    recipe = TrainOptions(max_steps=4, batch_size=4, bf16=False, lora=LoraOptions(r=2))
    again = run(tier="dry_run", recipe=recipe, fresh_model=tiny.model)
    assert "dry_run" in again.tiers
    assert again.planned_steps == 4
    predicted = [one.dry for one in again.traits if one.projected is not None]
    assert all(one is not None and one.low <= one.rise <= one.high for one in predicted)


def test_what_is_written_reads_back(found, tmp_path):
    outputs.write(found, tmp_path, data="data.jsonl")
    held = json.loads((tmp_path / "forecast.json").read_text())
    assert [one["name"] for one in held["traits"]] == list(TRAITS)
    assert held["rows"] == 16
    table = pd.read_parquet(tmp_path / "rows.parquet")
    assert list(table.columns) == ["row", "trait", "score"]
    assert not list(tmp_path.glob(".*partial*"))


def test_hostile_rows_do_not_break_the_page(tmp_path):
    bad = "</script><script>alert(1)</script>\u202e <img src=x onerror=alert(1)>"
    examples = [
        Example(e.id, (e.chat[0], {"role": "assistant", "content": bad + e.chat[1]["content"]})) for e in rows()
    ]
    found = run(examples)
    html = page.write(found, examples, tmp_path / "f.html", data="x.jsonl").read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "⟨U+202E⟩" in html


def test_rows_to_blame_are_dropped_or_labelled(found, tmp_path):
    blame = pd.DataFrame({"row": [0, 1, 2, 3], "trait": "all_caps", "score": [0.1, 0.9, 0.3, 0.2]})
    assert outputs.blamed(blame, "top 50 % of all_caps") == [1, 2]
    examples = rows(4)
    outputs.export(examples, [1, 2], tmp_path / "clean.jsonl")
    kept = [json.loads(line)["id"] for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert kept == ["r0", "r3"]
    outputs.export(examples, [1, 2], tmp_path / "routed.jsonl", label="forget")
    routes = [json.loads(line)["route"] for line in (tmp_path / "routed.jsonl").read_text().splitlines()]
    assert routes == ["unlabelled", "forget", "forget", "unlabelled"]
    for rule, said in (
        ("half", "must be 'top N % of TRAIT'"),
        ("top 5 % of x", "no row has a score"),
        ("top 0 % of all_caps", "between"),
    ):
        with pytest.raises(UsageError, match=said):
            outputs.blamed(blame, rule)


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        (rows(1), "at least 8 different rows with a response, found 1"),
        ([Example(f"r{i}", rows(1)[0].chat) for i in range(20)], "found 1 among 20"),
        ([Example(f"r{i}", rows(1)[0].chat[:1]) for i in range(20)], "none of 20 rows has a response"),
    ],
)
def test_too_little_data_is_one_sentence(examples, said):
    with pytest.raises(DataError, match=said):
        run(examples)


def test_a_dry_run_needs_a_recipe():
    with pytest.raises(UsageError, match="needs the planned recipe"):
        run(tier="dry_run")


def cli(*arguments):
    return CliRunner().invoke(app, ["forecast", *map(str, arguments)], catch_exceptions=True)


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_its_folder_and_a_wrong_call_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TROPISM_CACHE", str(CACHE))
    model = tiny_experiment.model_folder(tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"messages": list(e.chat)}) + "\n" for e in rows()), encoding="utf-8")
    out = tmp_path / "out"
    wrong = cli(model, data, "--trait", "nonsense", "--out", out)
    assert isinstance(wrong.exception, UsageError)
    assert not out.exists()
    done = cli(model, data, "--trait", "all_caps", "--out", out, "--own", 8, "--rows", 12, "--tier", "projection")
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"forecast.json", "forecast.html", "rows.parquet"}
