"""`generate: {backend: …}` in an experiment file: which conditions a server or an engine can answer for."""

from tropism.experiments.file.complaints import At
from tropism.experiments.file.spec import ExperimentSpec


def check_backend(e: ExperimentSpec) -> None:
    """Raise `At` for what whoever generates cannot have: an adapter that is no plain LoRA, a base that is not the server's."""
    by = e.generate.backend
    if by == "transformers":
        return
    if e.loaded.quantization != "none":
        raise At(
            ("generate", "backend"),
            f"{by!r} loads the weights itself, and load: {{quantization: {e.loaded.quantization}}} says how they are loaded "
            f"here; drop one of the two",
        )
    if e.generate.served is not None and e.generate.served.adapters == "folder":
        return
    what = "vLLM" if by == "vllm" else "a server that is given adapters by name (served: {adapters: lora})"
    otherwise = "take backend: transformers, or backend: endpoint with served: {adapters: folder}"
    if e.start_from is not None:
        raise At(("generate", "backend"), f"{what} has the base without start_from merged into it; {otherwise}")
    if e.chat_template is not None and by == "endpoint":
        raise At(("generate", "backend"), f"{what} has a chat template of its own, not chat_template; {otherwise}")
    if e.generate.dtype != "auto" and by == "endpoint":
        raise At(("generate", "dtype"), f"is the server's to say, found {e.generate.dtype!r}; leave it at auto")
    for name, condition in e.conditions.items():
        key = ("conditions", name)
        if condition.model is not None:
            raise At(key, f"is a whole model, and {what} has one base model; {otherwise}")
        if not condition.trains:
            continue
        options = e.train_options(name)
        if options.adapter != "lora":
            raise At(key, f"trains every weight, and {what} takes LoRA adapters; {otherwise}")
        guards = condition.guard if isinstance(condition.guard, list) else [condition.guard or {}]
        if options.forget_lora is not None or any("gradient_routing" in guard for guard in guards):
            raise At(key, f"has two adapters at a time, and {what} takes one a request; {otherwise}")
        for option in ("dora", "bias", "modules_to_save", "target_parameters"):
            if getattr(options.lora, option) not in (False, "none", []):
                raise At(key, f"has train.lora.{option}, which {what} does not take; {otherwise}")


def highest_rank(e: ExperimentSpec) -> int:
    """Return the highest rank of the adapters that are trained; an adapter that was there says its own."""
    ranks = [e.train_options(name).lora.r for name in e.trained]
    return max([*ranks, *(e.train_options(adapter=name).lora.r for name in e.adapters)], default=1)
