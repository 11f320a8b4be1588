"""Finished runs as models of Inspect: `inspect eval TASK --model tropism/FOLDER/caft/seed-0:MODE`.

Inspect finds this file by its entry point. `tropism/runs/caps/base` is the untrained model; an absolute folder is written
`tropism//home/me/runs/caps/caft/seed-0`.
"""

from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from tropism.errors import UsageError

UNSUPPORTED = ("stop_seqs", "logprobs", "top_k", "num_choices", "frequency_penalty", "presence_penalty", "logit_bias")
"""Options of Inspect that would change an answer and that this provider does not have."""


@dataclass
class _Asked:
    """One request, and its answer once there is one."""

    chat: list[dict[str, Any]]
    options: Any
    seed: int
    output: ModelOutput | None = field(default=None)


@modelapi(name="tropism")  # type: ignore[untyped-decorator, unused-ignore]
def tropism() -> type[ModelAPI]:
    """Return the provider's class."""
    return TropismModel


class TropismModel(ModelAPI):  # type: ignore[misc, unused-ignore]
    """A run of a results folder, its adapter merged into the base model as at Tropism's own evaluation.

    The name that Inspect keeps ends in `@` and the first twelve digits of the hash of the run's adapters, since Inspect
    takes cached answers by the model's name; a name with a hash, as `inspect eval-retry` gives it, is checked.

    Answers are generated as the experiment generates (`generate:`), greedy by default; `--max-tokens`, `--temperature`,
    `--top-p` and `--seed` count before it. Raises `UsageError` for tools, other options, and content that is not text.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature
        **model_args: Any,
    ) -> None:
        from tropism.experiments.after.arms import arm_of

        if model_args:
            raise UsageError(f"the provider tropism takes no model arguments, found {', '.join(model_args)}")
        path, _, known = model_name.partition("@")
        arm = arm_of(path)
        digest = arm.digest()[:12]
        if known and known != digest:
            raise UsageError(
                f"{path} was asked for with the adapters {known}, and has {digest} now: it was trained again since; leave out "
                f"@{known} to take it as it is"
            )
        super().__init__(f"{path}@{digest}", base_url, api_key, [], config)
        self._experiment = arm.found.experiment
        self._model, self._tokenizer = arm.load()
        self._waiting: list[_Asked] = []
        self._lock = anyio.Lock()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a chat; requests that come while the model is busy are answered together."""
        if tools:
            raise UsageError("the provider tropism has no tools; use a task without them")
        unsupported = [name for name in UNSUPPORTED if getattr(config, name, None) not in (None, 1)]
        if unsupported:
            raise UsageError(f"the provider tropism does not have {', '.join(unsupported)}; leave them out")
        asked = _Asked([_message(one) for one in input], self._options(config), config.seed or 0)
        self._waiting.append(asked)
        async with self._lock:
            if asked.output is None:
                alike = [one for one in self._waiting if (one.options, one.seed) == (asked.options, asked.seed)]
                self._waiting = [one for one in self._waiting if one not in alike]
                await anyio.to_thread.run_sync(self._answer, alike)
        assert asked.output is not None
        return asked.output

    def max_tokens(self) -> int | None:
        """As the experiment generates."""
        limit: int = self._experiment.generate.max_new_tokens
        return limit

    def max_connections(self) -> int:
        """As many requests at a time as the experiment generates together."""
        size: int = self._experiment.generate.batch_size
        return size

    def _options(self, config: GenerateConfig) -> Any:
        from tropism.data.generation import GenerateOptions

        given = {"max_new_tokens": config.max_tokens, "temperature": config.temperature, "top_p": config.top_p}
        held = self._experiment.generate.model_dump() | {"samples": 1}
        held |= {name: value for name, value in given.items() if value is not None}
        return GenerateOptions(**held)

    def _answer(self, batch: list[_Asked]) -> None:
        from tropism.data.generation import generate
        from tropism.data.render import render_prompts

        chats = [one.chat for one in batch]
        kwargs = self._experiment.template_kwargs
        texts = generate(
            self._model, self._tokenizer, chats, batch[0].options, seed=batch[0].seed, template_kwargs=kwargs
        )
        prompts = render_prompts(self._tokenizer, chats, template_kwargs=kwargs)
        for one, text, prompt in zip(batch, texts, prompts, strict=True):
            said = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            output = ModelOutput.from_content(model=self.model_name, content=text)
            output.usage = ModelUsage(input_tokens=len(prompt), output_tokens=said, total_tokens=len(prompt) + said)
            one.output = output


def _message(message: ChatMessage) -> dict[str, Any]:
    if message.role not in ("system", "user", "assistant"):
        raise UsageError(f"the provider tropism answers system, user and assistant messages, found {message.role!r}")
    if not isinstance(message.content, str) and any(part.type != "text" for part in message.content):
        kinds = sorted({part.type for part in message.content})
        raise UsageError(f"the provider tropism answers text, found content of {', '.join(kinds)}")
    return {"role": message.role, "content": message.text}
