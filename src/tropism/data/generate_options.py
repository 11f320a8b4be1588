"""The options of generation: what an experiment file says under `generate:`. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SEEDS_APART = 1_000_003
"""How far apart the seeds of a prompt's samples are, so that two of an experiment's own seeds do not meet."""


class ServedOptions(BaseModel):
    """An OpenAI-compatible server that generates, and how it comes to have a run's adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    base_url: str
    """Where it answers, as in `http://localhost:8000/v1`."""
    adapters: Literal["lora", "folder"] = "lora"
    """`lora`: it is told to load the run's LoRA under a name, as vLLM's server can be; `folder`: it is asked for a folder with
    the merged model by its path, as `transformers serve` takes it. It must see the results folder, or the temporary one."""
    base: str | None = None
    """With `lora`, the base model's name there; by default the experiment's `model`."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the key."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests at a time."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds to wait for an answer."""


class GenerateOptions(BaseModel):
    """How responses are generated; `temperature: 0` is greedy."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    max_new_tokens: Annotated[int, Field(ge=1)] = 96
    """The most tokens of a response."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Prompts answered together."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 always takes the likeliest token; above 0 responses are sampled."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of generation; `auto` is bfloat16 where that is faster: measured on a CPU, granted on an accelerator."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Responses to each prompt, each drawn from a seed of its own; more than one needs a temperature above 0."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The seed of sampling; the sample number k of a prompt is drawn from `seed + 1,000,003·k`."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from this many of the likeliest tokens; 0 from all."""
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Divide the logits of tokens that are there already by this; 1 leaves them."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a response, which is cut before them."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """The least tokens of a response."""
    backend: Literal["transformers", "vllm", "endpoint"] = "transformers"
    """Who generates: transformers in this process, vLLM in this process, or the server under `served`."""
    served: ServedOptions | None = None
    """With `backend: endpoint`, the server."""
    vllm: dict[str, Any] = {}
    """With `backend: vllm`, further options of `vllm.LLM`: `{gpu_memory_utilization: 0.5, max_model_len: 4096}`."""

    @model_validator(mode="after")
    def _nothing_idle(self) -> "GenerateOptions":
        """An option of sampling does nothing where nothing is sampled."""
        for name, idle in (("samples", 1), ("top_k", 0), ("seed", 0)):
            if self.temperature == 0 and getattr(self, name) != idle:
                raise ValueError(f"{name} does nothing at temperature 0, which is greedy: set a temperature")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens must be at most max_new_tokens ({self.max_new_tokens})")
        if (self.served is not None) != (self.backend == "endpoint"):
            raise ValueError(
                f"served says which server generates, with backend: endpoint alone, found {self.backend!r}"
            )
        if self.vllm and self.backend != "vllm":
            raise ValueError(f"vllm has options for backend: vllm alone, found {self.backend!r}")
        return self

    def in_use(self) -> dict[str, Any]:
        """The options as plain data, without those that came later and have their default: what an identity holds."""
        later = ("samples", "seed", "top_k", "repetition_penalty", "stop", "min_new_tokens")
        idle = {name for name in later if getattr(self, name) == type(self).model_fields[name].default}
        found = self.model_dump(exclude={*idle, "backend", "served", "vllm"})
        if self.backend != "transformers":
            how = None if self.served is None else [self.served.adapters, self.served.base]
            found["backend"] = [self.backend, how, self.vllm]
        return found

    def seed_of(self, sample: int) -> int:
        """The seed from which a prompt's sample of that number is drawn."""
        return self.seed + SEEDS_APART * sample

    def greedy(self) -> "GenerateOptions":
        """The same options without sampling: one response, always the likeliest token."""
        return self.model_copy(update={"temperature": 0.0, "samples": 1, "seed": 0, "top_k": 0})
