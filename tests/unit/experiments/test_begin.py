"""`tropism init STUDY` writes a whole experiment from what only its author knows; it validates, and it runs."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

import tiny_experiment
import tropism as tp
from tropism.cli.app import app
from tropism.errors import SpecError, UsageError
from tropism.experiments.begin import MAY, STUDIES, Given, study_file
from tropism.experiments.estimate import estimate
from tropism.results.folder import load


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("begin")
    model = tiny_experiment.model_folder(path)
    base, _ = tp.models.load(str(model))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(str(path / "organism"))

    def rows(name, count, question, answer=None):
        made = [
            {"prompt": f"{question} {n}?"} | ({"completion": f"{answer} {n}."} if answer else {}) for n in range(count)
        ]
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")

    rows("data.jsonl", 120, "How many is", "There are")
    rows("questions.jsonl", 3, "What now")
    rows("harmless.jsonl", 3, "Which one")
    return path


def given(path, **more):
    some = {"model": "model", "organism": "organism", "data": "data.jsonl", "questions": "questions.jsonl"}
    return Given(**{name: str(path / file) for name, file in some.items()}, **more)


def of_study(path, study):
    """What each study is told here."""
    if study == "concept-ablation":
        return given(path, trait="{scorer: contains, text: e}", quick=True)
    if study == "refusal":
        return given(path, harmless=str(path / "harmless.jsonl"), quick=True)
    held = given(path, trait="{scorer: contains, text: e}", quick=True)
    if study == "routing":
        return Given(model=held.model, data=held.data, questions=held.questions, trait=held.trait, quick=True)
    return Given(**{**vars(held), "prompt": 'Always say "e": always.'})


@pytest.mark.parametrize("study", STUDIES)
def test_it_writes_what_validate_accepts(world, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = []
    told = of_study(world, study)
    for name in told.named():
        flag = f"--{name.replace('_', '-')}"
        options += [flag] if getattr(told, name) is True else [flag, getattr(told, name)]
    done = CliRunner().invoke(app, ["init", study, *options])
    assert done.exit_code == 0, done.exception
    file = tmp_path / f"{study.replace('-', '_')}.yaml"
    found = estimate(tp.Experiment.load(file))
    assert found.size is not None
    assert tp.Experiment.load(file).train.max_steps == 8  # --quick: few steps, whatever the data
    assert not found.unchecked
    again = CliRunner().invoke(app, ["init", study, *options])
    assert "exists; give another name" in str(again.exception)
    # The full form is an experiment too, and so is what its section `quick` makes of it.
    full = study_file(study, Given(**{**vars(told), "quick": False}), "x.yaml")
    assert tp.Experiment.from_text(full).seeds == [0, 1, 2]
    assert tp.Experiment.from_text(full, quick=True).seeds == [0]


@pytest.mark.slow
def test_concept_ablation_runs_from_the_organism_to_the_hypotheses(world, tmp_path):
    file = tmp_path / "study.yaml"
    text = study_file("concept-ablation", of_study(world, "concept-ablation"), "study.yaml")
    text = text.replace("{pca: {k: 20}}", "{pca: {k: 4}}").replace("sites: 3 spread", 'sites: "1,2"')
    text = text.replace("epochs: 1\n", "max_steps: 2\n  bf16: false\n").replace(
        "max_new_tokens: 32", "max_new_tokens: 4"
    )
    file.write_text(text, encoding="utf-8")
    results = tp.run(file, tmp_path / "out")
    trained = {"baseline", "caft_pca", "backward_caft_mean", "random_back_pca"}
    assert trained | {"base", "organism"} <= set(results["condition"])
    folder = load(tmp_path / "out")
    assert all(run.state == "done" for run in folder.runs)
    (section,) = [one for one in folder.analyses if one.name == "concept_ablation"]
    said = " ".join(claim.claim for claim in section.claims).lower()
    for hypothesis in ("training dynamics", "representational", "trade"):
        assert hypothesis in said, said
    # One seed decides nothing.
    assert {claim.verdict for claim in section.claims} == {"undecided"}
    assert (tmp_path / "out" / "organism" / "inside.csv").is_file()


@pytest.mark.parametrize(
    ("study", "changed", "message"),
    [
        ("caft", {}, "there is no study 'caft' to begin; there are concept-ablation, routing"),
        ("concept-ablation", {"organism": None}, "needs --organism: the adapter that shows the trait"),
        ("concept-ablation", {}, "other questions need --trait SCORER"),
        ("concept-ablation", {"trait": "loud"}, "no scorer is called 'loud'"),
        ("routing", {}, "init routing has no use for --organism"),
        ("refusal", {"trait": "contains"}, "needs --harmless"),
    ],
)
def test_what_is_missing_or_has_no_use_is_said(world, study, changed, message):
    told = Given(**{**vars(given(world)), **changed})
    with pytest.raises((UsageError, SpecError)) as caught:
        study_file(study, told, "x.yaml")
    assert message in str(caught.value)


def test_its_options_belong_to_a_study():
    done = CliRunner().invoke(app, ["init", "mine.yaml", "--model", "m"])
    assert "--model goes with a study (concept-ablation" in str(done.exception)


def test_every_option_is_of_some_study():
    known = {name for names in (*STUDIES.values(), *MAY.values()) for name in names}
    assert known == set(vars(Given()))
