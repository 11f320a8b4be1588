"""`protect` whole, on a tiny model that learns to say `!` where a third of its rows do."""

import json
from dataclasses import replace

import pytest
import yaml

import tiny_experiment
from tropism.data.chats import Example
from tropism.errors import UsageError
from tropism.forecasting.protect import file
from tropism.forecasting.protect.options import ProtectOptions
from tropism.forecasting.protect.protect import Asked, protect
from tropism.forecasting.protect.split import split
from tropism.training.options import LoraOptions, TrainOptions

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PAIRS = [{"prompt": f"Say {i}.", "with": "!!" + "!" * (i % 3), "without": "..." + "." * (i % 3)} for i in range(12)]
BANG = {
    "name": "bang",
    "description": "answers with exclamation marks",
    "contrast": {"pairs": PAIRS},
    "scorer": {"contains": {"text": "!"}},
}
STEPS = TrainOptions(max_steps=10, batch_size=4, learning_rate=0.05, bf16=False, lora=LoraOptions(r=2))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("protect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TROPISM_CACHE", str(path / "cache"))
        patch.setattr(file, "EVERYDAY", 4)
        yield made(path)


def made(path):
    (path / "bang.yaml").write_text(yaml.safe_dump(BANG), encoding="utf-8")
    for name, share in (("planted", 3), ("plain", 0)):
        rows = []
        for i in range(48):
            answer = "!!!!" if share and i % share == 0 else "....." + "." * (i % 4)
            chat = [{"role": "user", "content": f"What is {i} + 1?"}, {"role": "assistant", "content": answer}]
            rows.append(json.dumps({"messages": chat}) + "\n")
        (path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return path, tiny_experiment.model_folder(path)


def ask(world, name, out, recipe=STEPS):
    path, model = world
    options = ProtectOptions(recipe, own=8, answers=16, margin=0.5, guards=("without_rows",))
    return Asked(
        str(model), str(path / f"{name}.jsonl"), (str(path / "bang.yaml"),), path / out, options, "tropism protect …"
    )


@pytest.fixture(scope="module")
def protected(world):
    return protect(ask(world, "planted", "out")), world[0] / "out"


def test_the_trait_is_found_a_guard_is_chosen_and_everything_is_left_behind(protected):
    told, out = protected
    assert told.unwanted == ("bang",)
    assert told.blamed == 16
    held = json.loads((out / "protect.json").read_text())
    assert held["choice"] is not None
    assert held["evidence"]["helped"]
    assert {"random_direction", "rows_by_chance", "placebo"} <= {
        one["name"] for one in held["race"][0] if one["control"]
    }
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert (out / "report.html").is_file()
    card = (out / "card.md").read_text()
    assert "| metric | asked on | untrained | before (no guard) | after | difference | shown |" in card
    assert "tropism protect …" in card


def test_selection_saw_no_prompt_that_the_guard_is_judged_on(protected):
    prompts = {}
    for name in ("train", "development", "confirmation"):
        rows = (protected[1] / "data" / f"{name}.jsonl").read_text().splitlines()
        prompts[name] = {json.loads(row)["messages"][0]["content"] for row in rows}
    assert not prompts["train"] & (prompts["development"] | prompts["confirmation"])
    assert not prompts["development"] & prompts["confirmation"]
    quick, full = (
        {path.name for path in (protected[1] / where / "baseline").iterdir()}
        for where in ("development", "confirmation")
    )
    assert not quick & full


def test_again_it_goes_on_where_it_stopped_and_a_folder_belongs_to_one_call(world, protected):
    _, out = protected
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("DONE.json")}
    (out / "card.md").unlink()
    again = protect(ask(world, "planted", "out"))
    assert again.choice == protected[0].choice
    assert (out / "card.md").is_file()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("DONE.json")} == stamps
    with pytest.raises(UsageError, match="another model, data set or choice"):
        protect(ask(world, "plain", "out"))


def test_a_plain_set_has_nothing_to_protect_from(world):
    told = protect(ask(world, "plain", "nothing"))
    out = world[0] / "nothing"
    assert told.unwanted == ()
    assert "nothing to protect from" in (out / "card.md").read_text()
    assert json.loads((out / "protect.json").read_text())["choice"] is None
    assert not (out / "adapter").exists()


def test_a_budget_that_teaches_nothing_is_said_and_nothing_is_raced(world):
    small = STEPS.model_copy(update={"max_steps": 1, "learning_rate": 1e-6})
    with pytest.raises(UsageError, match="learned none of the traits .* train longer") as error:
        protect(ask(world, "planted", "small", small))
    assert "\n" not in str(error.value)
    out = world[0] / "small"
    assert json.loads((out / "protect.json").read_text())["stopped"]
    assert not (out / "adapter").exists()
    assert not (out / "development" / "without_rows").exists()


def test_a_trait_without_a_scorer_is_refused_before_anything_is_read(world):
    asked = replace(ask(world, "planted", "unscored"), traits=("always answers in rhyme",))
    with pytest.raises(UsageError, match="has no scorer, so before and after cannot be measured"):
        protect(asked)
    assert not asked.folder.exists()


def test_an_unknown_guard_is_named():
    with pytest.raises(UsageError, match="no guard is called 'wall'; known are without_rows"):
        ProtectOptions(guards=("wall",))


def test_too_few_rows_to_hold_any_out():
    rows = [
        Example(str(i), ({"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"})) for i in range(20)
    ]
    with pytest.raises(Exception, match="leaves 4 of 20 to train on"):
        split(range(20), rows, 0)
