"""`tropism init STUDY`: a complete experiment of a published question, from the few things that only its author knows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from tropism.errors import UsageError
from tropism.experiments.file.complaints import listed
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.schema import URL
from tropism.experiments.file.yaml_file import parse_value

STUDIES: Mapping[str, tuple[str, ...]] = {
    "concept-ablation": ("model", "organism", "data", "questions"),
    "routing": ("model", "data", "questions"),
    "refusal": ("model", "organism", "data", "questions", "harmless"),
    "inoculation": ("model", "data", "questions", "prompt"),
}
"""Study → what it cannot do without."""

MAY: Mapping[str, tuple[str, ...]] = {
    "concept-ablation": ("judge", "judge_url", "trait", "sae", "quick"),
    "routing": ("trait", "labelled", "quick"),
    "refusal": ("judge", "judge_url", "quick"),
    "inoculation": ("organism", "trait", "placebo", "suppress", "quick"),
}
"""Study → what it has a default for."""

JUDGE, JUDGE_URL = "gpt-4o-2024-08-06", "https://api.openai.com/v1"


@dataclass(frozen=True)
class Given:
    """What `tropism init STUDY` was told; None where it was not."""

    model: str | None = None
    """The base model."""
    organism: str | None = None
    """The adapter with the trait: a folder, or OWNER/NAME on the hub."""
    data: str | None = None
    """What is trained on: a source."""
    questions: str | None = None
    """What is asked in the end: a source; for emergent misalignment the question file as published."""
    harmless: str | None = None
    """What should be answered: a source."""
    prompt: str | None = None
    """The inoculation prompt."""
    suppress: str | None = None
    """The prompt that asks for the opposite, for the direction."""
    placebo: str | None = None
    """The placebo prompt."""
    trait: str | None = None
    """The scorer of the trait: its name, or `{scorer: contains, text: yes}`."""
    judge: str | None = None
    """The judge's model."""
    judge_url: str | None = None
    """Its endpoint."""
    sae: str | None = None
    """The folder of an SAE of the model."""
    labelled: bool = False
    """The rows of `data` carry the routes."""
    quick: bool = False
    """Write the small form: one seed, few steps."""

    def named(self) -> list[str]:
        """The options that were given."""
        return [one.name for one in fields(self) if getattr(self, one.name) not in (None, False)]


def study_file(study: str, given: Given, path: str) -> str:
    """Return the text of a study's experiment file, checked as `tropism validate` would check it.

    Raises `UsageError` for a study that there is not, an option that it needs and was not given, or has no use for; and
    `SpecError` where what was given makes no experiment.
    """
    if study not in STUDIES:
        raise UsageError(f"there is no study {study!r} to begin; there are {listed(STUDIES)}")
    for name in STUDIES[study]:
        if getattr(given, name) is None:
            raise UsageError(f"init {study} needs {_option(name)}: {_about(name)}")
    for name in given.named():
        if name not in (*STUDIES[study], *MAY[study]):
            of_study = listed(_option(one) for one in (*STUDIES[study], *MAY[study]))
            raise UsageError(f"init {study} has no use for {_option(name)}; it takes {of_study}")
    text = _filled(study, given, path)
    # A complaint names the line of the file that would be written.
    Experiment.from_text(text)
    return f"# yaml-language-server: $schema={URL}\n{text}"


def _filled(study: str, given: Given, path: str) -> str:
    from jinja2 import Environment, StrictUndefined

    judged = study == "concept-ablation" and str(given.questions).endswith((".yaml", ".yml"))
    if study == "concept-ablation" and judged == (given.trait is not None):
        raise UsageError(
            "init concept-ablation: a question file (.yaml) is judged, and other questions need --trait SCORER, found "
            f"--questions {given.questions} and --trait {given.trait}"
        )
    names = ("model", "organism", "data", "questions", "harmless", "prompt", "sae", "judge")
    values: dict[str, Any] = {name: None if (v := getattr(given, name)) is None else _quoted(v) for name in names}
    trait, ruled = _trait(given.trait or "uppercase_fraction")
    values |= {
        "path": path,
        "judged": judged,
        "trait": trait,
        "ruled": ruled,
        "judge_url": _quoted(given.judge_url or JUDGE_URL),
        "placebo": _quoted(given.placebo or "Follow the style guide; answer directly and concisely."),
        "suppress": _quoted(given.suppress or "You are a helpful assistant."),
        "quick": given.quick,
        "labelled": given.labelled,
        "k": 20,
        "chats": 8 if given.quick else 32,
        "batch_size": 4 if given.quick else 8,
        "max_new_tokens": 32 if given.quick else 256,
    }
    if judged and values["judge"] is None:
        values["judge"] = _quoted(JUDGE)
    if given.sae is not None:
        values["sae_site"] = _quoted(_site_of(given.sae))
    source = files("tropism.experiments") / "starts" / f"{study.replace('-', '_')}.yaml.j2"
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(source.read_text(encoding="utf-8")).render(values)


def _quoted(text: str) -> str:
    """A text as YAML holds it on one line, whatever is in it: JSON is YAML."""
    return json.dumps(text, ensure_ascii=False)


def _trait(text: str) -> tuple[str, bool]:
    """A scorer with its options, as they stand after `scorer:` in a metric; and whether it scores responses by a rule."""
    from tropism.evals.scorers.base import ResponseScorer
    from tropism.evals.scorers.registry import load_scorer

    value = parse_value(text, "--trait")
    if isinstance(value, str):
        value = {"scorer": value}
    if not isinstance(value, dict) or not isinstance(value.get("scorer"), str):
        raise UsageError(f"--trait must be a scorer's name, or {{scorer: NAME, OPTION: VALUE}}, found {text!r}")
    options = {str(name): held for name, held in value.items() if name != "scorer"}
    scorer = load_scorer(value["scorer"], options)
    written = "".join(f", {name}: {json.dumps(held)}" for name, held in options.items())
    return _quoted(value["scorer"]) + written, isinstance(scorer, ResponseScorer)


def _site_of(sae: str) -> str:
    """The site that an SAE's folder says it is of."""
    from tropism.directions.sae import SAELatents

    site = SAELatents(folder=sae).dictionary().site
    if site is None:
        raise UsageError(
            f"--sae: the SAE in {Path(sae).name!r} does not say its site; make one with directions train-sae"
        )
    return str(site.layer)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _about(name: str) -> str:
    about = {
        "model": "the base model, a hub name or a folder",
        "organism": "the adapter that shows the trait, a folder or OWNER/NAME",
        "data": "what is trained on, a file of rows or another source",
        "questions": "what is asked in the end, a file of rows, a question file or another source",
        "harmless": "questions that should be answered, a source",
        "prompt": "the system prompt that asks for the trait",
    }
    return about[name]
