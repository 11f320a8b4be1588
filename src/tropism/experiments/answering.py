"""Who generates the responses of a run: transformers here, an engine in this process (vLLM), or a server over HTTP.

```text
backend: transformers   the run's adapter merged into the model that is held here
backend: vllm           one engine a process with the base model; the run's LoRA by name, request by request
backend: endpoint       served: {adapters: lora}    the server is told to load the run's LoRA under a name (vLLM)
                        served: {adapters: folder}  the server loads the merged model by its folder (transformers serve)
```
"""

import hashlib
import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from tropism import models
from tropism.data.chats import Chat
from tropism.data.generate_options import GenerateOptions
from tropism.data.generation import Answer, answers_in_batches, cut_before, generate_answers, written
from tropism.data.render import render_prompts
from tropism.data.templates import ChatTemplate
from tropism.errors import UsageError
from tropism.evals.judges.base import Request
from tropism.evals.judges.endpoint import Endpoint
from tropism.experiments.file.backend import highest_rank
from tropism.experiments.file.check import endpoint_of
from tropism.experiments.file.spec import EndpointSpec, ExperimentSpec
from tropism.experiments.subject import Subject
from tropism.experiments.team import ALONE, Team
from tropism.optional import require

Answers = list[Answer | None]
"""A response to each prompt of a set, sample after sample; None where an endpoint gave none, or another process answers."""
Answering = Callable[[Sequence[Chat], int, Callable[[int, int], None]], Answers]
"""(prompts, number of the sample, report) → a response to each prompt."""
LOADS_IN_S = 300.0
"""How long a server may take to load an adapter."""


@contextmanager
def answering(experiment: ExperimentSpec, subject: Subject, mode: str, team: Team = ALONE) -> Iterator[Answering]:
    """Give what answers for a subject in a mode; a server has the run's adapter for as long as this lasts.

    Of several processes each answers its batches of greedy prompts; a set whose answers are drawn is not divided.
    """
    by = experiment.generate.backend
    if subject.endpoint is not None:
        yield partial(_ask, subject.endpoint, experiment.generate)
    elif by == "endpoint":
        with _served(experiment, subject, mode) as name:
            yield partial(_ask, _endpoint(experiment, name), experiment.generate)
    elif by == "vllm":
        yield partial(_by_vllm, experiment, subject)
    else:
        yield partial(_here, experiment, subject, _merged(experiment, subject, mode), team)


def _merged(experiment: ExperimentSpec, subject: Subject, mode: str) -> Any:
    return for_generation(experiment, subject.trained.merged((subject.to_merge or subject.fresh_model)(), mode))


def for_generation(experiment: ExperimentSpec, model: Any) -> Any:
    """The model in the precision that the experiment generates in."""
    wish = experiment.generate.dtype
    if models.is_quantized(model):
        return model  # computes in the precision that it was quantised for
    device = str(next(model.parameters()).device)
    half = models.computes_bfloat16(device) if wish == "auto" else wish == "bfloat16"
    return model.to(torch.bfloat16) if half else model if wish == "auto" else model.to(torch.float32)


def _here(
    experiment: ExperimentSpec,
    subject: Subject,
    model: Any,
    team: Team,
    prompts: Sequence[Chat],
    sample: int,
    report: Callable[[int, int], None],
) -> Answers:
    options = experiment.generate
    if team.of > 1 and options.temperature == 0:
        mine = answers_in_batches(
            model, subject.tokenizer, prompts, options, team.takes,
            template_kwargs=experiment.template_kwargs, report=report,
        )  # fmt: skip
        return [mine.get(place) for place in range(len(prompts))]
    return list(
        generate_answers(
            model, subject.tokenizer, prompts, options, seed=options.seed_of(sample),
            template_kwargs=experiment.template_kwargs, report=report,
        )
    )  # fmt: skip


def _ask(
    endpoint: Endpoint,
    options: GenerateOptions,
    prompts: Sequence[Any],
    sample: int,
    report: Callable[[int, int], None],
) -> Answers:
    """Return what an endpoint answers; None where it failed after its retries, which is no empty answer."""
    if options.temperature > 0:
        endpoint = replace(endpoint, extra_body={**endpoint.extra_body, "seed": options.seed_of(sample) % 2**31})
    answers: Answers = [None] * len(prompts)
    requests = [Request(prompt, options.max_new_tokens) for prompt in prompts]
    for done, (index, reply) in enumerate(endpoint.answers(requests), 1):
        answers[index] = Answer(reply.text, reply.finished) if reply.failure is None else None
        report(done, len(prompts))
    return answers


def _endpoint(experiment: ExperimentSpec, name: str) -> Endpoint:
    """Return the server, asked for a model by its name there."""
    served = experiment.generate.served
    assert served is not None  # by its own check
    spec = EndpointSpec(
        base_url=served.base_url, model=name, api_key_env=served.api_key_env, concurrency=served.concurrency,
        timeout=served.timeout,
    )  # fmt: skip
    endpoint = endpoint_of(spec, experiment)
    if not experiment.template_kwargs:
        return endpoint
    kwargs = {"chat_template_kwargs": dict(experiment.template_kwargs)}
    return replace(endpoint, extra_body={**endpoint.extra_body, **kwargs})


@contextmanager
def _served(experiment: ExperimentSpec, subject: Subject, mode: str) -> Iterator[str]:
    """Give the name under which the server answers as the subject."""
    served, adapter = experiment.generate.served, subject.trained.adapter
    assert served is not None  # by its own check
    if served.adapters == "folder":
        with tempfile.TemporaryDirectory(prefix="tropism-served-") as folder:
            _merged(experiment, subject, mode).save_pretrained(folder)
            subject.tokenizer.save_pretrained(folder)
            yield folder
        return
    if adapter is None:
        yield served.base or experiment.model
        return
    name = _lora_name(adapter)
    tell = partial(_tell, served.base_url, served.api_key_env)
    tell("load_lora_adapter", {"lora_name": name, "lora_path": str(adapter.resolve())})
    try:
        yield name
    finally:
        tell("unload_lora_adapter", {"lora_name": name})


def _lora_name(adapter: Path) -> str:
    """A name that says which weights they are: two folders of the same path need not hold the same adapter."""
    said = hashlib.sha256(str(adapter.resolve()).encode())
    for file in sorted(adapter.glob("adapter_*")):
        said.update(file.read_bytes())
    return f"tropism-{said.hexdigest()[:16]}"


def _tell(base_url: str, key_env: str, what: str, said: Mapping[str, str]) -> None:
    """Ask vLLM's server to load or unload an adapter; raises `UsageError` where it does not."""
    import os

    url = f"{base_url.rstrip('/')}/{what}"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(key_env):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(said).encode(), headers)
    try:
        urllib.request.urlopen(request, timeout=LOADS_IN_S).close()
    except (urllib.error.URLError, OSError) as error:
        raise UsageError(
            f"generate.served: {url} does not take the adapter ({error}); vLLM does where it was started with --enable-lora and "
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True; for other servers set adapters: folder"
        ) from None


@cache
def _engine(path: str, rank: int, dtype: str, options: str) -> Any:
    """The engine of this process; one that is there already is kept for every run."""
    vllm: Any = require("vllm", extra="vllm", purpose="generate: {backend: vllm}")
    return vllm.LLM(model=path, enable_lora=True, max_lora_rank=_offered(rank), dtype=dtype, **json.loads(options))


def _offered(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and that holds this one."""
    return next((one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), rank)


def _by_vllm(
    experiment: ExperimentSpec,
    subject: Subject,
    prompts: Sequence[Chat],
    sample: int,
    report: Callable[[int, int], None],
) -> Answers:
    """Answer by the engine, from the very tokens that transformers would be given."""
    vllm: Any = require("vllm", extra="vllm", purpose="generate: {backend: vllm}")
    options, tokenizer, adapter = experiment.generate, subject.tokenizer, subject.trained.adapter
    llm = _engine(subject.source, highest_rank(experiment), options.dtype, json.dumps(options.vllm, sort_keys=True))
    names = (f"prompt {index}" for index in range(len(prompts)))
    rows = list(render_prompts(tokenizer, prompts, template_kwargs=experiment.template_kwargs, names=names))
    template = ChatTemplate(tokenizer)
    stops = [*([text] if (text := template.stop_text()) else []), *options.stop]
    ends = [token for token in (tokenizer.eos_token_id, template.stop_id()) if token is not None]
    params = [
        vllm.SamplingParams(
            max_tokens=options.max_new_tokens, min_tokens=options.min_new_tokens, temperature=options.temperature,
            top_p=options.top_p, top_k=options.top_k, repetition_penalty=options.repetition_penalty, stop=stops,
            stop_token_ids=sorted(set(ends)), skip_special_tokens=False,
            # One prompt's draw does not hang on the others', nor is it theirs.
            seed=(options.seed_of(sample) + place) % 2**31 if options.temperature > 0 else None,
        )
        for place in range(len(rows))
    ]  # fmt: skip
    lora = None
    if adapter is not None:
        request = require("vllm.lora.request", extra="vllm", purpose="generate: {backend: vllm}")
        name = _lora_name(adapter)
        lora = request.LoRARequest(name, int(name[-7:], 16) + 1, str(adapter.resolve()))
    given = llm.generate(
        [{"prompt_token_ids": list(row.input_ids)} for row in rows], params, lora_request=lora, use_tqdm=False
    )
    report(len(rows), len(rows))
    answers: Answers = []
    for one in given:
        said = one.outputs[0]
        text = cut_before(written(tokenizer, list(said.token_ids)), stops)
        answers.append(Answer(text, said.finish_reason != "length"))
    return answers
