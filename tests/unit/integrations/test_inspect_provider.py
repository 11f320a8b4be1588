"""Inspect evaluates a run as a model: the real library, the provider found as Inspect finds it."""

import asyncio
import shutil

import pytest

pytest.importorskip("inspect_ai", reason="the extra inspect is not installed")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import includes

import tropism.integrations.inspect_provider  # noqa: F401 - where this package's entry points are not installed
from tropism.data.generation import GenerateOptions, generate
from tropism.errors import UsageError
from tropism.experiments.after.arms import arm_of

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

PROMPTS = [f"Say {n}!" for n in range(5)]


@pytest.fixture
def out(finished):
    return finished


def expected(arm, tokens):
    model, tokenizer = arm.load()
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return generate(model, tokenizer, chats, GenerateOptions(max_new_tokens=tokens, dtype="float32"))


@pytest.mark.parametrize("name", ["baseline/seed-0", "routed/seed-0:forget_ablated"])
def test_an_evaluation_gets_what_tropism_generates(out, tmp_path, name):
    arm = arm_of(f"{out}/{name}")
    task = Task(dataset=[Sample(input=prompt, target="e") for prompt in PROMPTS], scorer=includes())
    (log,) = eval(task, model=f"tropism/{out}/{name}", log_dir=str(tmp_path), display="none", max_tokens=5)
    assert log.status == "success", log.error
    assert log.eval.model == f"tropism/{out}/{name}@{arm.digest()[:12]}"
    answers = {sample.input: sample.output.completion for sample in log.samples}
    assert [answers[prompt] for prompt in PROMPTS] == expected(arm, 5)
    assert expected(arm, 5) != expected(arm_of(out / "base"), 5)
    usage = log.samples[0].output.usage
    assert usage.input_tokens > 0


def test_requests_that_wait_are_answered_together_each_with_its_own(out):
    model = get_model(f"tropism/{out}/baseline/seed-0", memoize=False)
    sizes = []
    answer = model.api._answer
    model.api._answer = lambda batch: (sizes.append(len(batch)), answer(batch))

    async def ask():
        async def one(prompt):
            config = GenerateConfig(max_tokens=4)
            return (await model.api.generate([ChatMessageUser(content=prompt)], [], "none", config)).completion

        return await asyncio.gather(*map(one, PROMPTS))

    assert asyncio.run(ask()) == expected(arm_of(out / "baseline/seed-0"), 4)
    assert sum(sizes) == len(PROMPTS)
    assert len(sizes) < len(PROMPTS)


def test_other_weights_have_another_name_and_are_refused_under_the_old_one(out, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(out, mine)
    old = arm_of(mine / "baseline/seed-0").digest()[:12]
    shutil.rmtree(mine / "baseline/seed-0")
    shutil.copytree(out / "baseline/seed-1", mine / "baseline/seed-0")
    model = get_model(f"tropism/{mine}/baseline/seed-0", memoize=False)
    assert not model.name.endswith(old)
    with pytest.raises(UsageError, match="it was trained again since"):
        get_model(f"tropism/{mine}/baseline/seed-0@{old}", memoize=False)


def test_what_the_provider_does_not_have_is_said(out):
    model = get_model(f"tropism/{out}/baseline/seed-0", memoize=False)
    with pytest.raises(UsageError, match="does not have stop_seqs"):
        asyncio.run(model.api.generate([ChatMessageUser(content="?")], [], "none", GenerateConfig(stop_seqs=["a"])))
    with pytest.raises(UsageError, match="takes no model arguments, found device"):
        get_model(f"tropism/{out}/baseline/seed-0", memoize=False, device="cpu")
