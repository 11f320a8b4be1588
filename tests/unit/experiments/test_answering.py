"""Who generates: the same tokens go to every back-end, with the run's own adapter, and what it cannot have is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
import tiny_experiment
from judge_server import Answer, completion, serving
from tropism import models
from tropism.errors import MissingExtra, SpecError, UsageError
from tropism.experiments import answering as module
from tropism.experiments.answering import answering
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.subject import Subject, Trained

PROMPTS = [({"role": "user", "content": text},) for text in ("What is two and two?", "Name a colour.", "Hi")]
GENERATE = "generate: {max_new_tokens: 3, dtype: float32}"


@pytest.fixture
def world(tmp_path):
    """An experiment's file and the subject of a run with an adapter that changes what is said."""
    folder = tiny_experiment.model_folder(tmp_path)
    torch.manual_seed(2)
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(tmp_path / "adapter")
    fresh = lambda: models.load(str(folder))[0]  # noqa: E731
    subject = Subject(Trained(tmp_path / "adapter", False), fresh, tiny.tokenizer(), source=str(folder))

    def experiment(generate):
        return Experiment.load(tiny_experiment.write(tmp_path, (GENERATE, f"generate: {generate}")))

    return experiment, subject


def answers(experiment, subject):
    with answering(experiment, subject, "full") as answer:
        return answer(PROMPTS, 0, lambda *_: None)


class Engine:
    """vLLM's interface over transformers: what is asked of it is done as vLLM documents it."""

    made: list = []

    def __init__(self, model, enable_lora, max_lora_rank, dtype, **options):
        self.said = {"model": model, "rank": max_lora_rank, "dtype": dtype, **options}
        self.asked = []
        Engine.made.append(self)

    def generate(self, prompts, params, lora_request, use_tqdm):
        self.asked.append((params, lora_request))
        model = models.load(self.said["model"])[0]
        if lora_request is not None:
            model = models.load_adapter(model, lora_request.path)
        found = []
        for prompt, asked in zip(prompts, params, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=asked.max_tokens,
                eos_token_id=asked.stop_token_ids, pad_token_id=0,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
            reason = "length" if len(output) == asked.max_tokens else "stop"
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=output, finish_reason=reason)]))
        return found


@pytest.fixture
def vllm(monkeypatch):
    lora_request = SimpleNamespace(
        LoRARequest=lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    )
    stub = SimpleNamespace(LLM=Engine, SamplingParams=lambda **given: SimpleNamespace(**given))
    for name, held in (("vllm", stub), ("vllm.lora", SimpleNamespace()), ("vllm.lora.request", lora_request)):
        monkeypatch.setitem(sys.modules, name, held)
    module._engine.cache_clear()
    Engine.made = []
    yield
    module._engine.cache_clear()


def test_vllm_answers_from_the_same_tokens_with_the_runs_lora_by_name(world, vllm):
    experiment, subject = world
    here = experiment("{max_new_tokens: 12, dtype: float32}")
    there = experiment("{max_new_tokens: 12, dtype: float32, backend: vllm, vllm: {gpu_memory_utilization: 0.5}}")
    expected = answers(here, subject)
    assert answers(there, subject) == expected
    base = Subject(Trained(None, False), subject.fresh_model, subject.tokenizer, source=subject.source)
    assert answers(there, base) == answers(here, base) != expected
    (engine,) = Engine.made  # one a process, for every run
    assert engine.said == {"model": subject.source, "rank": 8, "dtype": "float32", "gpu_memory_utilization": 0.5}
    request = engine.asked[0][1]
    assert request.name.startswith("tropism-")
    assert request.number > 0
    assert engine.asked[1][1] is None


def test_vllm_draws_each_prompt_and_sample_from_a_seed_of_its_own(world, vllm):
    experiment, subject = world
    drawn = experiment("{max_new_tokens: 3, temperature: 1.0, samples: 2, top_k: 5, seed: 7, backend: vllm}")
    with answering(drawn, subject, "full") as answer:
        for sample in (0, 1):
            answer(PROMPTS, sample, lambda *_: None)
    seeds = [one.seed for params, _ in Engine.made[0].asked for one in params]
    assert len(set(seeds)) == 6
    assert seeds[0] == 7
    assert Engine.made[0].asked[0][0][0].top_k == 5


def test_without_vllm_the_extra_is_named(world, monkeypatch):
    experiment, subject = world
    module._engine.cache_clear()
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tropism\[vllm\]'"):
        answers(experiment("{max_new_tokens: 3, backend: vllm}"), subject)


def test_vllm_itself_answers_as_transformers_does(world):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tropism[vllm]', which takes a GPU machine")
    experiment, subject = world
    here, there = (
        experiment(f"{{max_new_tokens: 12, dtype: float32, backend: {b}}}") for b in ("transformers", "vllm")
    )
    assert answers(there, subject) == answers(here, subject)


def test_a_server_is_told_to_load_the_runs_lora_and_asked_for_it_by_name(world):
    pytest.importorskip("openai")
    experiment, subject = world
    with serving(lambda *_: completion("four")) as server:
        given = experiment(
            f"{{max_new_tokens: 3, backend: endpoint, served: {{base_url: '{server.url}', base: the-base}}}}"
        )
        assert [one.text for one in answers(given, subject)] == ["four"] * 3
        load, *asked, unload = server.bodies
        assert load["lora_path"] == str(subject.trained.adapter.resolve())
        assert {one["model"] for one in asked} == {load["lora_name"]} == {unload["lora_name"]}
        base = Subject(Trained(None, False), subject.fresh_model, subject.tokenizer)
        answers(given, base)
        assert {one["model"] for one in server.bodies[5:]} == {"the-base"}


def test_a_server_that_takes_no_adapter_is_one_sentence(world):
    experiment, subject = world
    with serving(lambda *_: Answer({"error": "no"}, 404)) as server:
        given = experiment(f"{{max_new_tokens: 3, backend: endpoint, served: {{base_url: '{server.url}'}}}}")
        with pytest.raises(UsageError, match="does not take the adapter .*--enable-lora.*set adapters: folder"):
            answers(given, subject)


@pytest.mark.parametrize(
    ("generate", "change", "said"),
    [
        ("{backend: endpoint}", None, "served says which server generates, with backend: endpoint alone"),
        ("{served: {base_url: 'http://x/v1'}}", None, "served says which server generates"),
        ("{vllm: {seed: 1}}", None, "vllm has options for backend: vllm alone"),
        (
            "{backend: vllm}",
            ("lora: {r: 2}", "lora: {r: 2, dora: true}"),
            "has train.lora.dora, which vLLM does not take",
        ),
        (
            "{backend: vllm}",
            ("max_steps: 2,", "max_steps: 2, adapter: full,"),
            "trains every weight, and vLLM takes LoRA",
        ),
        (
            "{backend: vllm}",
            ("baseline: {}", "baseline: {}\n  whole: {model: x/y}"),
            "whole model, and vLLM has one base",
        ),
    ],
)
def test_what_a_back_end_cannot_have_is_one_sentence(tmp_path, generate, change, said):
    changes = [(GENERATE, f"generate: {generate}"), *([change] if change else [])]
    with pytest.raises(SpecError, match=said):
        Experiment.load(tiny_experiment.write(tmp_path, *changes))


def test_a_back_end_belongs_to_what_determines_results_and_the_usual_one_leaves_hashes_as_they_were(world):
    experiment, _ = world
    plain = experiment("{max_new_tokens: 3}").generate.in_use()
    assert not {"backend", "served", "vllm"} & plain.keys()
    one, two = (
        experiment(f"{{backend: endpoint, served: {{base_url: 'http://{host}/v1'}}}}").generate.in_use()
        for host in "ab"
    )
    assert one == two != experiment("{}").generate.in_use()
