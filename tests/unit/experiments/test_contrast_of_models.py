"""A contrast of models in a file is `Contrast.of_models` in Python, on the same chats, whichever way its sides are named."""

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

import tiny_experiment
import tropism as tp
from tropism.data import sources
from tropism.errors import SpecError
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.identity import directions_identity
from tropism.experiments.prepared import prepare_experiment
from tropism.experiments.progress import Progress
from tropism.experiments.start import load_tokenizer
from tropism.experiments.store import Folder
from tropism.site import Site

SITES = (Site(1), Site(2))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("contrast")
    model = tiny_experiment.model_folder(path)
    for name, seed in (("a", 1), ("b", 2)):
        base, _ = tp.models.load(str(model))
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(str(path / name))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(str(path / "merged-b"))
    tp.models.load(str(model))[1].save_pretrained(str(path / "merged-b"))
    return path


def experiment(path, **directions):
    file = {
        "name": "contrast",
        "model": str(path / "model"),
        "data": {
            "probes": {"source": "word_problems", "size": 12, "split": "test"},
            "held_out": {"source": "word_problems", "size": 2, "split": "test"},
        },
        "adapters": {name: {"from": str(path / name)} for name in ("a", "b")},
        "directions": directions,
        "conditions": {"published": {"adapter": "a"}},
        "measure": {"loss": {"scorer": "response_loss", "on": ["held_out"]}},
    }
    return Experiment.from_text(yaml.safe_dump(file))


def prepared(e, out):
    source = tp.models.resolve(e.model)
    return prepare_experiment(e, Folder(out), source, load_tokenizer(e, source), Progress()).directions


def chats():
    return [example.chat for example in sources.load("word_problems", size=12, split="test")]


def by_hand(path, tuned, base=None, **options):
    find, _ = tp.Contrast.of_models(chats(), tuned=tuned, base=base).split(0.25, 0)
    tokenizer = tp.models.load(str(path / "model"))[1]
    return tp.find_directions(base or tuned, tokenizer, find, sites=SITES, **options)


def same(one, other):
    for site in SITES:
        torch.testing.assert_close(one.vectors[site], other.vectors[site], atol=1e-4, rtol=1e-4)


def test_the_file_finds_what_python_finds(world, tmp_path):
    common = {"of": "models", "chats": "probes"}
    e = experiment(
        world,
        organism={"contrast": {**common, "tuned": "a"}, "sites": "1,2"},
        tokens={
            "contrast": {**common, "tuned": "a", "tokens": "all", "pool": "token"},
            "finder": {"pca": {"k": 4}},
            "sites": "1,2",
            "components": [0, 2],
        },
        two={"contrast": {**common, "tuned": "a", "base": "b"}, "sites": "1,2"},
        whole={"contrast": {**common, "tuned": "a", "base": {"model": str(world / "merged-b")}}, "sites": "1,2"},
    )
    found = prepared(e, tmp_path / "out")

    def loaded(adapter=None):
        return tp.models.load(str(world / "model"), adapter=None if adapter is None else world / adapter)[0]

    same(found["organism"], by_hand(world, loaded("a")))
    tokens = by_hand(world, loaded("a"), positions="all", finder=tp.PCA(k=4, per="token"))
    same(found["tokens"], tp.Directions({site: rows[[0, 2]] for site, rows in tokens.vectors.items()}))
    same(found["two"], by_hand(world, loaded("a"), loaded("b")))
    # Two tuned models against each other: the second is the same as its merged checkpoint.
    same(found["two"], found["whole"])
    assert found["two"].provenance["contrast"]["tuned"] == "a"
    assert found["two"].provenance["contrast"]["base"] == "b"
    assert found["tokens"].provenance["pool"] == "token"


def test_the_adapter_counts_in_the_identity_by_its_content(world, tmp_path):
    contrast = {"contrast": {"of": "models", "chats": "probes", "tuned": "a"}}
    e = experiment(world, organism=contrast)
    other = e.model_copy(update={"adapters": {**e.adapters, "a": e.adapters["b"]}})
    assert directions_identity(e, {"name": "m"}, "organism") != directions_identity(other, {"name": "m"}, "organism")


@pytest.mark.parametrize(
    ("contrast", "more", "message"),
    [
        ({"tuned": "nobody", "chats": "probes"}, {}, "tuned: no adapter is called 'nobody'; defined are a, b"),
        ({"tuned": "a"}, {}, "chats: is required of a contrast of models"),
        ({"tuned": "a", "chats": "nothing"}, {}, "chats: no data set is called 'nothing'"),
        ({"tuned": "a", "base": "a", "chats": "probes"}, {}, "base: must be another model than 'tuned'"),
        ({"tuned": "a", "chats": "probes", "source": "word_problems"}, {}, "source: does nothing here"),
        ({"tuned": "a", "chats": "probes", "tokens": "all"}, {"positions": "response"}, "keep one of the two"),
        (
            {"tuned": "a", "chats": "probes", "pool": "chat"},
            {"finder": {"pca": {"per": "token"}}},
            "finder: says per: 'token', and the contrast's 'pool' 'chat'",
        ),
    ],
)
def test_what_a_contrast_of_models_must_not_say(world, contrast, more, message):
    with pytest.raises(SpecError, match=message):
        experiment(world, d={"contrast": {"of": "models", **contrast}, **more})


def test_its_options_belong_to_no_other_contrast(world):
    with pytest.raises(SpecError, match="pool: does nothing here, found 'token': only a contrast of models has it"):
        experiment(world, d={"contrast": {"of": "responses", "source": "word_problems", "pool": "token"}})
