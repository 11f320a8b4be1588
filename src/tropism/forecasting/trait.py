"""A trait: what it looks like (pairs of responses, or two system prompts) and how it is scored.

Traits are small YAML files. A built-in one is called by its name, one's own by its path, and a sentence such as "always
answers in rhyme" becomes a pair of system prompts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tropism.data.chats import Example
from tropism.data.transforms import TRANSFORMS
from tropism.directions.contrasts import Contrast
from tropism.errors import SpecError
from tropism.evals.scorers.base import ResponseScorer
from tropism.evals.scorers.registry import load_scorer
from tropism.given import parse_yaml, read_text

FEWEST_PAIRS = 8
"""Under this many pairs nothing is left to validate a direction on."""

Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """No unknown key, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Pair(Strict):
    """One prompt with a response that shows the trait and one that does not."""

    prompt: Text
    with_: Text = Field(alias="with")
    without: Text


class Replacement(Strict):
    """A regular expression, and what stands in its place: in turn, one per prompt."""

    pattern: Text
    with_: str | list[str] = Field(alias="with")


class Edit(Strict):
    """How a plain answer is made to show the trait; lists are used in turn, one entry per prompt."""

    transform: str | None = None
    field: Literal["answer", "short", "spanish"] = "answer"
    """Which of the shipped answers to begin with."""
    replace: list[Replacement] = []
    prefix: list[str] = [""]
    suffix: list[str] = [""]
    responses: list[Text] = []
    """Whole responses that fit any prompt, instead of an edited answer."""

    def apply(self, answers: dict[str, str], index: int) -> str:
        """Return the response that shows the trait, for the prompt with this index."""
        if self.responses:
            return self.responses[index % len(self.responses)]
        text = answers[self.field]
        for one in self.replace:
            choices = [one.with_] if isinstance(one.with_, str) else one.with_
            text = re.sub(one.pattern, choices[index % len(choices)], text)
        text = self.prefix[index % len(self.prefix)] + text + self.suffix[index % len(self.suffix)]
        if self.transform is not None:
            chat = ({"role": "user", "content": ""}, {"role": "assistant", "content": text})
            changed = TRANSFORMS[self.transform]().apply(Example(str(index), chat), seed=0)
            text = changed.chat[-1]["content"]
        return text


class ContrastSpec(Strict):
    """Exactly one of: `pairs`, the system prompts `promote` and `suppress`, an `edit` of the shipped plain answers."""

    pairs: list[Pair] = []
    promote: Text | None = None
    suppress: Text | None = None
    edit: Edit | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "ContrastSpec":
        prompts = self.promote is not None and self.suppress is not None
        if (self.promote is None) != (self.suppress is None):
            raise ValueError("give both promote and suppress")
        if bool(self.pairs) + prompts + (self.edit is not None) != 1:
            raise ValueError("give one of pairs, promote with suppress, or edit")
        if self.pairs and len(self.pairs) < FEWEST_PAIRS:
            raise ValueError(f"pairs needs at least {FEWEST_PAIRS} pairs, found {len(self.pairs)}")
        return self


class TraitFile(Strict):
    """What a trait's YAML file says."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")]
    description: Text
    kind: Literal["form", "stance", "own"] = "own"
    contrast: ContrastSpec
    scorer: str | dict[str, dict[str, Any] | None] | None = None


@dataclass(frozen=True)
class Trait:
    """A trait that can be forecast: its contrast as chats, and a scorer where there is one."""

    name: str
    description: str
    kind: str
    spec: ContrastSpec
    scorer: ResponseScorer | None
    scorer_spec: tuple[str, tuple[tuple[str, Any], ...]] | None = None
    """The scorer's name and options as an experiment file writes them."""

    def pairs(self) -> list[Pair]:
        """Pairs of responses; none where the trait is two system prompts."""
        if self.spec.edit is None:
            return list(self.spec.pairs)
        edit = self.spec.edit
        made = []
        for index, row in enumerate(plain_answers()):
            made.append(
                Pair.model_validate({"prompt": row["prompt"], "with": edit.apply(row, index), "without": row["answer"]})
            )
        return made

    def contrast(self) -> Contrast:
        """The contrast that the trait's direction is found from."""
        if self.spec.promote is not None and self.spec.suppress is not None:
            prompts = [row["prompt"] for row in plain_answers()]
            return Contrast.of_system_prompts(prompts, promote=self.spec.promote, suppress=self.spec.suppress)
        pairs = self.pairs()
        return Contrast.of_responses(
            [pair.prompt for pair in pairs],
            positive=[pair.with_ for pair in pairs],
            negative=[pair.without for pair in pairs],
        )


@cache
def plain_answers() -> tuple[dict[str, str], ...]:
    """The shipped prompts, each with a plain answer, a very short one and one in Spanish."""
    text = (files("tropism.forecasting") / "plain_answers.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(text))


def names() -> list[str]:
    """The built-in traits, sorted."""
    folder = files("tropism.forecasting") / "traits"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(named: str) -> Trait:
    """A trait by built-in name, by the path of its file, or by a sentence that describes it; raises `SpecError`.

    >>> load("all_caps").pairs()[0].with_[:11]
    'TREES STOP '
    """
    if named in names():
        resource = files("tropism.forecasting") / "traits" / f"{named}.yaml"
        return parse(resource.read_text(encoding="utf-8"), f"trait {named}")
    if named.endswith((".yaml", ".yml")):
        return parse(read_text(Path(named), "--trait", SpecError), named)
    if len(named.split()) < 2:
        raise SpecError(
            f"no trait is called {named!r}; available: {', '.join(names())}; give one of them, a .yaml file, or a sentence "
            f"such as 'always answers in rhyme'"
        )
    return _from_sentence(named)


def load_all(named: Sequence[str]) -> list[Trait]:
    """The traits named, or the whole library where none is; raises `SpecError` for a name given twice."""
    traits = [load(name) for name in (named or names())]
    seen: set[str] = set()
    for trait in traits:
        if trait.name in seen:
            raise SpecError(f"--trait: {trait.name!r} is given twice; give each trait once")
        seen.add(trait.name)
    return traits


def parse(text: str, where: str) -> Trait:
    """The trait that a YAML text describes; an error names the file, the key and what is wrong."""
    held = parse_yaml(text, where, SpecError)
    if not isinstance(held, dict):
        raise SpecError(f"{where}: a trait must be a mapping with name, description, contrast and scorer")
    try:
        spec = TraitFile.model_validate(held)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        message = first["msg"].removeprefix("Value error, ")
        raise SpecError(f"{where}: {key}: {message}, found {str(first['input'])[:60]!r}") from None
    _check_edit(spec, where)
    name, options = _scorer(spec.scorer, where)
    scorer = load_scorer(name, options) if name is not None else None
    if scorer is not None and not isinstance(scorer, ResponseScorer):
        raise SpecError(f"{where}: scorer: must score responses by their text, found {name!r}")
    chosen = None if name is None else (name, tuple(sorted(options.items())))
    return Trait(spec.name, spec.description, spec.kind, spec.contrast, scorer, chosen)


def _check_edit(spec: TraitFile, where: str) -> None:
    """An edit's patterns compile, its transform exists, and no side of a pair is the other."""
    edit = spec.contrast.edit
    if edit is not None:
        if edit.transform is not None and edit.transform not in TRANSFORMS:
            raise SpecError(
                f"{where}: contrast.edit.transform: must be one of {', '.join(TRANSFORMS)}, found {edit.transform!r}"
            )
        for one in edit.replace:
            try:
                re.compile(one.pattern)
            except re.error as error:
                raise SpecError(
                    f"{where}: contrast.edit.replace: {one.pattern!r} is no regular expression: {error}"
                ) from None
    for index, pair in enumerate(spec.contrast.pairs):
        if pair.with_.strip() == pair.without.strip():
            raise SpecError(f"{where}: contrast.pairs[{index}]: both sides are the same text, {pair.with_[:40]!r}")


def _scorer(named: str | dict[str, dict[str, Any] | None] | None, where: str) -> tuple[str | None, dict[str, Any]]:
    if named is None or isinstance(named, str):
        return named, {}
    if len(named) != 1:
        raise SpecError(
            f"{where}: scorer: give a name or one {{name: {{options}}}}, found {', '.join(named) or 'nothing'}"
        )
    name, options = next(iter(named.items()))
    return name, dict(options or {})


def _from_sentence(sentence: str) -> Trait:
    """A trait that the user describes in words: two system prompts, and no scorer."""
    name = re.sub(r"[^a-z0-9]+", "_", sentence.lower()).strip("_")[:40]
    said = sentence.strip().rstrip(".")
    spec = ContrastSpec(
        promote=f"You are an assistant who {said}.",
        suppress="You are a plain assistant. Answer as you normally do.",
    )
    return Trait(f"t_{name}" if not name[:1].isalpha() else name, said, "own", spec, None)
