"""Cards of what an experiment was made with: a prepared adapter, and directions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from tropism.directions.artifact import FORMAT, Directions
from tropism.directions.parameter import ParameterDirections
from tropism.directions.stored import format_of
from tropism.directions.validity import ValidityReport, validity_path
from tropism.errors import UsageError
from tropism.experiments.after.model_card import as_line, as_yaml, fenced, public
from tropism.experiments.file.spec import ExperimentSpec
from tropism.names import VERSION

UNCHECKED = "This card was written by a program; nobody has checked what it is about for any use."


def adapter_card(
    experiment: ExperimentSpec, name: str, repo: str, base_model: str, environment: Mapping[str, Any]
) -> str:
    """The card of a prepared adapter (`adapters:`), which the experiment trained for its guards or to start from."""
    told = public(experiment.adapters[name].model_dump(mode="json", exclude_defaults=True, by_alias=True))
    code = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base_model}")\n'
        f'model = PeftModel.from_pretrained(base, "{repo}")\n'
    )
    versions = environment.get("versions") or {}
    body = (
        f"# The adapter {name} of the experiment {experiment.name}\n\n"
        f"An adapter for `{base_model}` that Tropism prepared before the conditions of an experiment: it is something that "
        "they begin from, are kept from, or are compared with, and may hold a trait that nobody wants.\n\n"
        f"## Use\n\n{fenced(code, 'python')}\n\n"
        f"## What it is\n\n{fenced(as_yaml(told), 'yaml')}\n\n"
        f"`experiment.yaml` is the whole experiment (Tropism {versions.get('tropism', VERSION)}).\n\n"
        f"## Caveats\n\n- Nothing was measured on this adapter by itself.\n- {UNCHECKED}"
    )
    return _with_metadata(body, base_model, ["tropism", "lora"], "peft")


def directions_card(file: Path, repo: str, base_model: str | None) -> str:
    """The card of a file of directions; raises `DirectionsError` where it holds none."""
    parameters = format_of(file) != FORMAT
    found: Directions | ParameterDirections = ParameterDirections.load(file) if parameters else Directions.load(file)
    about = found.provenance.get("model")
    named = about.get("name") if isinstance(about, Mapping) else None
    base = base_model or (named if isinstance(named, str) and named.count("/") == 1 else None)
    if base is None:
        raise UsageError(
            f"{file} does not say of which model on the hub its directions are (found {named!r}); name its repository with "
            "--base-model OWNER/NAME"
        )
    kind = "ParameterDirections" if parameters else "Directions"
    code = (
        "import tropism as tp\nfrom huggingface_hub import hf_hub_download\n\n"
        f'found = tp.{kind}.load(hf_hub_download("{repo}", "directions.safetensors"))\n'
    )
    body = (
        f"# Directions of `{base}`: {file.stem}\n\n{_shape(found)} A safetensors file of Tropism's ({format_of(file)}).\n\n"
        f"## Use\n\n{fenced(code, 'python')}\n\n"
        f"## Where they come from\n\n{fenced(as_yaml(public(_plain(found.provenance))), 'yaml')}\n\n"
        f"## Caveats\n\n{_doubts(file)}\n- {UNCHECKED}"
    )
    return _with_metadata(body, base, ["tropism", "steering-vectors"], None)


def _shape(found: Directions | ParameterDirections) -> str:
    if isinstance(found, ParameterDirections):
        return f"{found.k} directions in the parameters of {len(found.weights)} weights."
    ranks = sorted({len(rows) for rows in found.vectors.values()})
    rows = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return f"{rows} of width {found.width} at each of {len(found.sites)} sites, {found.sites[0]} to {found.sites[-1]}."


def _doubts(file: Path) -> str:
    report = validity_path(file)
    if not report.is_file():
        return "- They were not validated: whether they are about what their contrast names is not known."
    validity = ValidityReport.load(report)
    said = [as_line(doubt.text) for doubt in validity.doubts()]
    return "\n".join(f"- {line}" for line in [as_line(validity.summary()), *said])


def _with_metadata(body: str, base_model: str, tags: list[str], library: str | None) -> str:
    data = ModelCardData(base_model=base_model, library_name=library, tags=tags)
    return f"---\n{str(data.to_yaml()).strip()}\n---\n\n{body}\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value
