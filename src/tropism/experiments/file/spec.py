"""What an experiment file says: one definition of each option, checked before any model is loaded."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tropism.data.generation import GenerateOptions
from tropism.data.sources import NAMES, is_file, known
from tropism.data.transforms import TRANSFORMS, Transform
from tropism.errors import SiteError, SpecError
from tropism.experiments.analyses import ANALYSES, Analysis, load_analysis
from tropism.experiments.file import guards
from tropism.experiments.file.complaints import At, Under, first_complaint, listed, message
from tropism.experiments.file.options import from_options
from tropism.experiments.file.yaml_file import Document, Key, parse, read
from tropism.names import BASE
from tropism.training.options import TrainOptions

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")]
Named = str | dict[str, Any]
"""A registered name, or `{name: {options}}`."""


class Model(BaseModel):
    """Every part of a file: no unknown key, no coercion, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataSpec(Model):
    """A set of examples: where they come from and what is done to them."""

    source: str | None = None
    sources: list[str] = []
    """Several sources, one after the other, instead of `source`."""
    size: Annotated[int, Field(ge=1)] | None = None
    split: str = "train"
    seed: int = 0
    subset: str | None = None
    columns: dict[str, str] | None = None
    path: str | None = None
    transform: Named | list[Named] = "plain"
    drop: Literal["labelled"] | None = None
    """Leave out what the transform labelled `route: forget`: the data-filtering baseline."""
    system_prompt: str | None = None
    also: "list[DataSpec]" = []
    """Further sets, each by its own rules, put after this one: what is mixed in."""

    def names(self) -> list[str]:
        return self.sources or ([self.source] if self.source else [])

    def transforms(self) -> list[Transform]:
        listed = self.transform if isinstance(self.transform, list) else [self.transform]
        return [from_options(named, TRANSFORMS, "transform") for named in listed]


class ContrastSpec(Model):
    """The positive and negative chats from which a direction is found."""

    of: Literal["responses", "system_prompts", "data"]
    source: str | None = None
    size: Annotated[int, Field(ge=8)] | None = None
    split: str = "train"
    seed: int = 1
    path: str | None = None
    positive: Named = "uppercase"
    """A transform; with `of: data` the name of a set under `data:`."""
    negative: Named = "plain"
    promote: str | None = None
    suppress: str | None = None


class DirectionsSpec(Model):
    """Directions: found from a contrast, or read from a file."""

    contrast: ContrastSpec | None = None
    file: str | None = None
    finder: Named = "mean_difference"
    sites: str = "25%..75%"
    positions: Literal["last_prompt", "first_response", "response", "all"] = "response"
    strict: bool = False
    """Refuse directions whose validity report has a grave warning, instead of warning in the report."""
    behaviour: str | None = None
    """A metric of responses: the validity report compares the projections of the start model's own answers with it."""


class AdapterSpec(Model):
    """An adapter trained before the conditions, once: a refusal to keep, a trait to freeze in."""

    data: DataSpec
    system_prompt: str | None = None
    train: dict[str, Any] = {}


class ConditionSpec(Model):
    """An arm: what differs from the shared `data.train` and `train`."""

    data: dict[str, Any] = {}
    train: dict[str, Any] = {}
    system_prompt: str | None = None
    guard: dict[str, Any] | list[dict[str, Any]] | None = None
    after: dict[str, Any] | list[dict[str, Any]] | None = None
    """Edits of the trained adapter's weights: `safe_lora`, `shrinkage`."""
    note: str | None = None


class MeasureSpec(Model):
    """A metric: a scorer with its options, the sets it is taken on, and what a reader wishes of it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    scorer: str
    on: Annotated[list[str], Field(min_length=1)]
    wanted: bool = False
    unwanted: bool = False
    margin: Annotated[float, Field(ge=0)] | None = None
    """How much of a wanted metric may be lost and still count as kept (noninferiority)."""

    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Experiment(Model):
    """One experiment file. `Experiment.load(path)` reads, checks and resolves it; nothing heavy is loaded."""

    name: Name
    question: str = ""
    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    template_kwargs: dict[str, Any] = {}
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2]
    scorers: str | None = None
    """A Python file that registers your own scorers; it is executed."""
    data: dict[Name, DataSpec]
    adapters: dict[Name, AdapterSpec] = {}
    start_from: Name | None = None
    """An adapter of `adapters` that is merged into the model before every condition."""
    directions: dict[Name, DirectionsSpec] = {}
    parameter_directions: dict[Name, dict[str, Any]] = {}
    train: TrainOptions = TrainOptions()
    generate: GenerateOptions = GenerateOptions()
    conditions: Annotated[dict[Name, ConditionSpec], Field(min_length=1)]
    baseline: Name = "baseline"
    measure: Annotated[dict[Name, MeasureSpec], Field(min_length=1)]
    analyses: dict[Name, dict[str, Any] | None] = {}
    quick: dict[str, Any] = {}
    """What `--quick` overrides: any keys of this file."""

    @classmethod
    def load(cls, path: str | Path, *, quick: bool = False, overrides: dict[str, Any] | None = None) -> "Experiment":
        """Read an experiment file; `overrides` maps dotted keys to values (`train.learning_rate`).

        Raises `SpecError` naming the file, line and key, the value found and what is allowed.
        """
        return cls.from_document(read(path), quick=quick, overrides=overrides)

    @classmethod
    def from_text(cls, text: str, *, quick: bool = False, overrides: dict[str, Any] | None = None) -> "Experiment":
        """The experiment that a YAML text describes."""
        return cls.from_document(parse(text), quick=quick, overrides=overrides)

    @classmethod
    def from_document(
        cls, document: Document, *, quick: bool = False, overrides: dict[str, Any] | None = None
    ) -> "Experiment":
        data = document.data
        if quick:
            # checked by validating the merged file, as everything else is
            data = merge(data, data.get("quick", {}) if isinstance(data.get("quick"), dict) else {})
        for dotted, value in (overrides or {}).items():
            data = merge(data, _nested(dotted, value))
        try:
            experiment = cls.model_validate(data)
            experiment.check()
        except ValidationError as error:
            raise SpecError(first_complaint(error, document, cls)) from None
        except At as error:
            raise SpecError(f"{document.where(error.key)}: {error}") from None
        return experiment

    def resolved(self) -> dict[str, Any]:
        """The file with every default written out."""
        return self.model_dump(mode="json")

    def train_data(self, condition: str) -> DataSpec:
        """`data.train` with the condition's overrides."""
        own = self.conditions[condition].data
        return DataSpec.model_validate(merge(self.data["train"].model_dump(exclude_unset=True), own))

    def train_options(self, condition: str | None = None, adapter: str | None = None) -> TrainOptions:
        """`train` with the overrides of a condition or of a prepared adapter."""
        own = self.adapters[adapter].train if adapter else self.conditions[condition].train if condition else {}
        shared = self.train.model_dump(exclude_unset=True)
        if "epochs" in own or "max_steps" in own:
            shared = {key: value for key, value in shared.items() if key not in ("epochs", "max_steps")}
        return TrainOptions.model_validate(merge(shared, own))

    def load_analyses(self) -> dict[str, Analysis]:
        return {name: load_analysis(name, options or {}) for name, options in self.analyses.items()}

    def check(self) -> None:
        """What the shape of the file cannot say: names that must be defined, options that scorers and guards must have."""
        from tropism.evals.scorers.registry import load_scorer, register_file

        def at(*key: str | int) -> "Under":
            return Under(key)

        if "train" not in self.data:
            raise At(("data",), f"must define the set 'train', found {listed(self.data)}")
        if self.baseline not in self.conditions:
            raise At(
                ("conditions",),
                f"must define the baseline {self.baseline!r}, found {listed(self.conditions)}; "
                f"name another with 'baseline:'",
            )
        if BASE in self.conditions:
            raise At(("conditions", BASE), f"{BASE!r} is the untrained model's name; call the condition something else")
        if len(set(self.seeds)) < len(self.seeds):
            raise At(("seeds",), f"a seed is given twice, found {self.seeds}")
        if self.scorers:
            with at("scorers"):
                register_file(self.scorers)
        for name, spec in self.data.items():
            self._check_data(spec, ("data", name))
        for name, adapter in self.adapters.items():
            self._check_data(adapter.data, ("adapters", name, "data"))
            self._check_train(adapter.train, ("adapters", name, "train"), adapter=name)
        if self.start_from and self.start_from not in self.adapters:
            raise At(("start_from",), f"no adapter is called {self.start_from!r}; defined are {listed(self.adapters)}")
        for name, directions in self.directions.items():
            self._check_directions(directions, ("directions", name))
        for name, options in self.parameter_directions.items():
            with at("parameter_directions", name):
                guards.check_parameter_directions(options, set(self.adapters))
        for name, condition in self.conditions.items():
            key = ("conditions", name)
            unknown = set(condition.data) - set(DataSpec.model_fields)
            if unknown:
                raise At((*key, "data", min(unknown)), f"unknown key; allowed are {listed(DataSpec.model_fields)}")
            try:
                self._check_data(self.train_data(name), (*key, "data"))
            except ValidationError as error:
                raise At((*key, "data", *error.errors()[0]["loc"]), message(error)) from None
            self._check_train(condition.train, (*key, "train"), condition=name)
            with at(*key, "guard"):
                guards.check_guard(
                    condition.guard, set(self.directions), set(self.parameter_directions), set(self.adapters)
                )
            with at(*key, "after"):
                guards.check_after(condition.after, set(self.parameter_directions))
                for other in guards.norms_of(condition.after):
                    order = list(self.conditions)
                    if other not in order[: order.index(name)]:
                        raise SpecError(f"norm: must name a condition that stands before {name!r}, found {other!r}")
        for name, measure in self.measure.items():
            for index, data in enumerate(measure.on):
                if data not in self.data or data == "train":
                    others = [d for d in self.data if d != "train"]
                    raise At(
                        ("measure", name, "on", index),
                        f"no evaluation set is called {data!r}; defined are {listed(others)}",
                    )
            if measure.wanted and measure.unwanted:
                raise At(("measure", name), "a metric is wanted or unwanted, found both")
            with at("measure", name):
                load_scorer(measure.scorer, measure.options())
        for name, given in self.analyses.items():
            if name not in ANALYSES:
                raise At(("analyses", name), f"no analysis is called {name!r}; known are {listed(ANALYSES)}")
            with at("analyses", name):
                load_analysis(name, given or {}).check(self)

    def _check_train(
        self, own: dict[str, Any], key: Key, *, condition: str | None = None, adapter: str | None = None
    ) -> None:
        try:
            self.train_options(condition, adapter)
        except ValidationError as error:
            raise At((*key, *error.errors()[0]["loc"]), message(error)) from None

    def _check_data(self, spec: DataSpec, key: Key) -> None:
        if bool(spec.source) == bool(spec.sources):
            raise At(key, "give 'source', or 'sources' for several, and not both")
        for source in spec.names():
            if is_file(source) and not Path(source).is_file():
                raise At((*key, "source"), f"no such file: {source!r}; put it there, or name another with --set")
            if not known(source):
                raise At(
                    (*key, "source"),
                    f"unknown source {source!r}; it must be one of {', '.join(NAMES)}, an existing "
                    f".jsonl file or folder, or a hub dataset OWNER/NAME",
                )
        with Under((*key, "transform")):
            spec.transforms()
        for index, more in enumerate(spec.also):
            self._check_data(more, (*key, "also", index))

    def _check_directions(self, spec: DirectionsSpec, key: Key) -> None:
        from tropism.site import select_layers

        if bool(spec.contrast) == bool(spec.file):
            raise At(key, "give 'contrast' to find directions or 'file' to read them, and not both")
        if spec.file and not Path(spec.file).is_file():
            raise At((*key, "file"), f"no such file: {spec.file!r}")
        try:
            select_layers(spec.sites, 10_000)
        except SiteError as error:
            raise At((*key, "sites"), str(error)) from None
        with Under((*key, "finder")):
            guards.check_finder(spec.finder)
        if spec.behaviour is not None:
            self._check_behaviour(spec, (*key, "behaviour"))
        if contrast := spec.contrast:
            if contrast.of == "data":
                self._check_contrast_of_data(contrast, (*key, "contrast"))
                return
            if contrast.source is None:
                raise At((*key, "contrast", "source"), "is required and missing")
            if not known(contrast.source):
                raise At(
                    (*key, "contrast", "source"),
                    f"unknown source {contrast.source!r}; known are {', '.join(NAMES)}, files, hub",
                )
            if contrast.of == "system_prompts" and not (contrast.promote and contrast.suppress):
                raise At((*key, "contrast"), "a contrast of system_prompts needs 'promote' and 'suppress'")
            for side in ("positive", "negative"):
                with Under((*key, "contrast", side)):
                    from_options(getattr(contrast, side), TRANSFORMS, "transform")

    def _check_behaviour(self, spec: DirectionsSpec, key: Key) -> None:
        from tropism.evals.scorers.base import ResponseScorer
        from tropism.evals.scorers.registry import load_scorer

        if spec.contrast is None:
            raise At(key, "directions from a file are not validated, so there is nothing to compare; drop 'behaviour'")
        if spec.behaviour not in self.measure:
            raise At(key, f"no metric is called {spec.behaviour!r}; defined are {listed(self.measure)}")
        measure = self.measure[spec.behaviour]
        if not isinstance(load_scorer(measure.scorer, measure.options()), ResponseScorer):
            raise At(
                key, f"must be a metric that scores responses by a rule, found {spec.behaviour!r} ({measure.scorer})"
            )

    def _check_contrast_of_data(self, contrast: ContrastSpec, key: Key) -> None:
        for name in ("source", "size", "path", "promote", "suppress"):
            if (found := getattr(contrast, name)) is not None:
                raise At(
                    (*key, name),
                    f"a contrast of data takes only 'positive' and 'negative', found {found!r}; say "
                    f"it of the sets under 'data:'",
                )
        for side in ("positive", "negative"):
            name = getattr(contrast, side)
            if name not in self.data:
                raise At((*key, side), f"no data set is called {name!r}; defined are {listed(self.data)}")


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings merged, `over` winning; anything but a mapping is replaced whole."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    return {head: _nested(rest, value) if rest else value}
