"""Every guard with directions has a random control of its own, and safe rows are own answers that no evaluation asks for."""

import json

import pytest
import torch
import yaml

import tiny
import tropism as tp
from tropism.data import sources
from tropism.data.chats import Example
from tropism.data.generation import Answer
from tropism.data.render import render_prompt
from tropism.errors import UsageError
from tropism.experiments.file import guards
from tropism.experiments.file.experiment import Experiment
from tropism.forecasting.found import TraitForecast
from tropism.forecasting.protect import file, safe
from tropism.forecasting.protect.candidates import BASELINE, CONTROLS, candidates, chosen, controls_of
from tropism.forecasting.protect.card import Told, write
from tropism.forecasting.protect.options import GUARDS, ProtectOptions
from tropism.forecasting.protect.race import Standing
from tropism.forecasting.protect.split import Split
from tropism.forecasting.sample import answer_tokens
from tropism.forecasting.trait import load
from tropism.forecasting.verdict import Corrected, Outcome

EVERY = candidates("data", True, ["all_caps", "flattery"], True)


def test_every_guard_that_can_be_asked_for_is_a_candidate_and_controls_are_of_guards():
    assert {one.name for one in EVERY if not one.control} == set(GUARDS)
    assert {one.name for one in EVERY if one.control} == set(CONTROLS)
    assert {guard for of in CONTROLS.values() for guard in of} < set(GUARDS)


def test_a_guard_with_directions_has_the_same_guard_at_random_directions_as_its_control():
    by_name = {one.name: one for one in EVERY}
    with_directions = [one for one in EVERY if not one.control and "directions" in one.needs]
    assert {one.name for one in with_directions} == {"gradient_projection", "steering"}
    for guard in with_directions:
        (control,) = controls_of(guard.name)
        plain = [(name, {**options, "random": True}) for name, options in guards.parts(guard.condition["guard"])]
        assert guards.parts(by_name[control].condition["guard"]) == plain
        assert control in {one.name for one in chosen(EVERY, [guard.name])}
    assert "random_direction" in {one.name for one in chosen(EVERY, ["kl"])}
    assert "random_steering" not in {one.name for one in chosen(EVERY, ["kl"])}


def test_card_and_json_show_each_guard_beside_its_own_control(tmp_path):
    standings = (("steering", 0.9), ("kl", 0.4), ("random_steering", 0.1))
    found = tuple(Standing(name, removed, 0.0, 1, name in CONTROLS) for name, removed in standings)
    told = Told("m", "d", "c", stopped="Stopped.", candidates=(BASELINE, *EVERY), rounds=(found,))
    write(tmp_path, told)
    text = (tmp_path / "card.md").read_text()
    assert "| steering | 90% | random steering 10% |" in text
    assert "| kl | 40% | it has none |" in text
    held = json.loads((tmp_path / "protect.json").read_text())
    assert held["controls"]["steering"] == ["random_steering"]
    assert held["controls"]["gradient_projection"] == ["random_direction"]
    assert held["controls"].keys() == set(GUARDS)


def test_two_random_directions_are_two_and_the_same_ones_twice_are_one():
    one = tp.Directions({tp.Site(0): torch.eye(3)[:1]})
    resources = guards.Resources({"a": one, "b": one}, seed=3)
    first, second = guards.build_guard([steer("a"), steer("b")], resources).parts()
    alone, same = guards.build_guard([steer("a"), project("a")], resources).parts()
    vectors = [part.directions.vectors[tp.Site(0)] for part in (first, second, alone, same)]
    assert not vectors[0].equal(vectors[1])
    assert vectors[0].equal(vectors[2])
    assert vectors[2].equal(vectors[3])
    assert vectors[0].equal(one.random_like(seed=3).vectors[tp.Site(0)])


def steer(name):
    return {"steering": {"directions": name, "random": True}}


def project(name):
    return {"gradient_projection": {"directions": name, "random": True}}


@pytest.fixture
def answered(monkeypatch):
    """A model that ends every second answer."""
    asked = []

    def answers(_model, _tokenizer, prompts, _options, *, seed):
        asked.extend(prompts)
        return [Answer(f"answer {i}", i % 2 == 0) for i in range(len(prompts))]

    monkeypatch.setattr(safe, "generate_answers", answers)
    return asked


def test_safe_rows_are_a_fifth_and_ask_what_no_evaluation_asks(answered, tmp_path):
    asked = sources.load("everyday_questions", size=24)
    assert safe.write_safe_rows(tmp_path / "safe.jsonl", 40, asked, None, None) == 10
    rows = [json.loads(line) for line in (tmp_path / "safe.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 10 == (40 + 10) * safe.SHARE
    assert {row["messages"][-1]["content"] for row in rows} == {f"answer {i}" for i in range(0, 10, 2)}
    evaluated = {str(example.prompt) for example in asked + sources.load("everyday_questions", split="dev")}
    assert len(answered) == 10
    assert not evaluated & {str(prompt) for prompt in answered}
    assert len(safe_rows(tmp_path, 4000)) == 1000


def safe_rows(folder, trained):
    safe.write_safe_rows(folder / "more.jsonl", trained, [], None, None)
    return (folder / "more.jsonl").read_text().splitlines()


def test_the_file_with_both_is_an_experiment_and_an_unanswering_model_is_said(answered, tmp_path, monkeypatch):
    examples = [
        Example(str(i), ({"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "A."}))
        for i in range(24)
    ]
    case = file.Case("some/model", (forecast(),), (), Split(tuple(range(16)), (16, 17, 18, 19), (20, 21, 22, 23)))
    options = ProtectOptions(guards=("kl", "safe_data"))
    held = file.write(tmp_path, case, examples, tiny.model(), tiny.tokenizer(), options)
    assert [one.name for one in held] == ["kl", "safe_data"]
    assert written(tmp_path)["generate"]["max_new_tokens"] == 2 * 2 + 4  # "A." is two tokens
    read = Experiment.load(tmp_path / "experiment.yaml")
    assert read.conditions["kl"].guard == {"kl_to_base": {"weight": 0.3}}
    assert [more.names() for more in read.train_data("safe_data").also] == [[f"{tmp_path.as_posix()}/data/safe.jsonl"]]
    assert written(tmp_path)["conditions"]["safe_data"]["role"] == "guard"
    monkeypatch.setattr(safe, "generate_answers", lambda *_, **__: [Answer("and", False)] * 4)
    with pytest.raises(UsageError, match="none of its own answers to everyday questions; name others") as error:
        file.write(tmp_path, case, examples, tiny.model(), tiny.tokenizer(), ProtectOptions(guards=("safe_data",)))
    assert "\n" not in str(error.value)


def written(folder):
    return yaml.safe_load((folder / "experiment.yaml").read_text())


def test_answers_may_be_twice_as_long_as_the_training_responses_while_there_is_room():
    prompts = [({"role": "user", "content": "What?"},)]
    model, tokenizer = tiny.model(), tiny.tokenizer()  # a token a byte, 512 of context
    for length, expected in ((10, 24), (400, 512 - len(render_prompt(tokenizer, prompts[0])))):
        rows = [Example("a", (*prompts[0], {"role": "assistant", "content": "x" * length}))]
        assert answer_tokens(model, tokenizer, rows, prompts) == expected


def forecast():
    nothing = {"p": Corrected(), "rated": None, "projected": None, "pulled": None, "dry": None}
    return TraitForecast(load("all_caps"), Outcome.EXPECTED, "Found.", 0.9, 1.0, 1.0, (), **nothing)
