"""What an experiment file may say: every key, its type, its default and its meaning.

This module only declares. `check` holds the rules that involve more than one key, `experiment` reads a file.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tropism.data.generate_options import GenerateOptions
from tropism.data.transforms import TRANSFORMS, Transform
from tropism.experiments.file.options import from_options
from tropism.experiments.file.overrides import merge
from tropism.models import Loading
from tropism.names import BASE
from tropism.results.arms import UNTRAINED
from tropism.training.options import TrainOptions

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")]
Named = str | dict[str, Any]
"""A registered name, or `{name: {options}}`."""


Positions = Literal["last_prompt", "first_response", "response", "all"]


class Model(BaseModel):
    """Every part of a file: no unknown key, no coercion, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class DataSpec(Model):
    """A set of examples: where they come from and what is done to them."""

    source: str | None = None
    """A registered source, a path to a file or a folder of chats, or a hub dataset `OWNER/NAME`."""
    sources: list[str] = []
    """Several sources, one after the other, instead of `source`."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Take a seeded sample of this many examples; by default all of them."""
    split: str = "train"
    """Which split to read, and which of its rows: `test`, `train[:70%]`, `train[100:200]`."""
    seed: int = 0
    """Seed of the sample, and of a source that generates its examples."""
    subset: str | None = None
    """A part that the source names: the configuration of a hub dataset, or which conversations of `harmful_qa`."""
    columns: dict[str, str] | None = None
    """What the source calls our columns: `{messages: dialogue}`, `{prompt: q, completion: rejected}`."""
    path: str | None = None
    """Where a registered source finds its rows, instead of the hub."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a row that cannot be read or learned from: an error, or it is left out and counted."""
    supervise: Literal["all_turns", "last_turn", "all_tokens"] = "all_turns"
    """What of a training chat is learned: every assistant turn, the last, or every token; of raw text, every token."""
    transform: Named | list[Named] = "plain"
    """What to do to each example, in this order: a transform, or a list of them."""
    drop: Literal["labelled"] | None = None
    """Leave out examples that the transform labelled `route: forget`: the data-filtering baseline."""
    system_prompt: str | None = None
    """Put this system prompt before every chat, in the place of one that is there."""
    also: "list[DataSpec]" = []
    """Further sets, each with its own options, added after this one: data that is mixed in."""

    def names(self) -> list[str]:
        """Return the names of the sources."""
        return self.sources or ([self.source] if self.source else [])

    def options(self) -> dict[str, Any]:
        """Return the options of each source."""
        names = {"split", "seed", "subset", "columns", "path"} | (set() if self.sources else {"size"})
        return self.model_dump(include=names)

    def transforms(self) -> list[Transform]:
        """Return the transforms, built from their options."""
        chosen = self.transform if isinstance(self.transform, list) else [self.transform]
        return [from_options(named, TRANSFORMS, "transform") for named in chosen]


class ModelSpec(Model):
    """A whole model: fully fine-tuned, or with an adapter merged in."""

    model: str
    """A hub name or a local folder."""
    revision: str | None = None
    """A revision of it on the hub."""


class ContrastSpec(Model):
    """The positive and negative chats from which a direction is found."""

    of: Literal["responses", "system_prompts", "data", "models"]
    """What differs between the two sides: the response, the system prompt, the data set, or the model that reads them."""
    tuned: Name | ModelSpec | None = None
    """With `of: models`, the model with the trait: an adapter of `adapters:`, or a whole model, `{model: OWNER/NAME}`."""
    base: Name | ModelSpec | None = None
    """With `of: models`, the model without it, likewise; by default the untouched model."""
    chats: Name | None = None
    """With `of: models`, the set under `data:` whose chats both models read, token for token."""
    tokens: Literal["response", "all"] | None = None
    """With `of: models`, which tokens are read: those of the responses, or of the whole chats; by default `response`."""
    pool: Literal["chat", "token"] | None = None
    """With `of: models`, what the finder is given: each chat's mean, or every token; by default as the finder does."""
    source: str | None = None
    """Where the prompts come from, as in a data set."""
    size: Annotated[int, Field(ge=8)] | None = None
    """Take a seeded sample of this many prompts; by default all of them."""
    split: str = "train"
    """Which split to read, and which of its rows, as in a data set."""
    seed: int = 1
    """Seed of the sample."""
    subset: str | None = None
    """A part that the source names, as in a data set."""
    columns: dict[str, str] | None = None
    """What the source calls our columns; of pairs also `{positive: chosen, negative: rejected}`."""
    path: str | None = None
    """Where a registered source finds its rows, instead of the hub."""
    transform: Named | list[Named] = "plain"
    """What to do to each example before its two sides are made, in this order."""
    positive: Named | None = None
    """The side with the trait: a transform of the response; with `of: data`, the name of a set under `data:`. Without
    both sides, a file's or hub dataset's columns `positive` and `negative` are read, and a registered source is in capitals
    on the positive side."""
    negative: Named | None = None
    """The side without the trait, likewise."""
    promote: str | None = None
    """With `of: system_prompts`, the prompt that asks for the trait."""
    suppress: str | None = None
    """With `of: system_prompts`, the prompt that asks for the opposite."""

    def options(self) -> dict[str, Any]:
        """Return the options of the source, without the columns of the two sides."""
        columns = {
            name: column for name, column in (self.columns or {}).items() if name not in ("positive", "negative")
        }
        given = self.model_dump(include={"size", "split", "seed", "subset", "path"})
        return {**given, "columns": columns or None}

    def transforms(self) -> list[Transform]:
        """Return the transforms that are applied before the sides are made."""
        chosen = self.transform if isinstance(self.transform, list) else [self.transform]
        return [from_options(named, TRANSFORMS, "transform") for named in chosen]

    def sides(self) -> tuple[Transform, Transform]:
        """Return the transforms that make the positive and the negative side."""
        return (
            from_options(self.positive or "uppercase", TRANSFORMS, "transform"),
            from_options(self.negative or "plain", TRANSFORMS, "transform"),
        )


class DirectionsSpec(Model):
    """Directions: found from a contrast, or read from a file."""

    contrast: ContrastSpec | None = None
    """The chats from which to find them."""
    file: str | list[str] | None = None
    """A directions file to read instead, of Tropism or of another project; several where each holds one layer."""
    finder: Named | None = None
    """How to find them: by default `mean_difference`."""
    sites: str | None = None
    """Where in the model: `all`, `8,12,16`, `25%..75%`, `3 spread`. By default `25%..75%`, or all that a file holds."""
    positions: Positions | None = None
    """Which tokens of a chat are read: by default `response`."""
    components: list[int] | dict[Annotated[str, Field(pattern=r"^\d+$")], list[int]] | None = None
    """Which of the directions at each site are taken, by number from 0: `[0, 12]`, or `{10: [0, 12], 20: [3]}` by block."""
    reading: dict[str, Any] | None = None
    """How to read another project's file where it does not say itself: `layer`, `orientation`, `indexing`, `key`."""
    strict: bool = False
    """Refuse directions whose validity report has a grave warning, instead of warning in the report."""
    behaviour: str | None = None
    """A metric of responses; the validity report compares it with the projections of the start model's own answers."""

    def files(self) -> list[str]:
        """Return the files to read."""
        return [self.file] if isinstance(self.file, str) else self.file or []

    @property
    def chosen_components(self) -> list[int] | dict[int, list[int]] | None:
        """The components, their blocks as numbers: a file's keys are text."""
        if isinstance(self.components, dict):
            return {int(block): numbers for block, numbers in self.components.items()}
        return self.components

    @property
    def chosen_finder(self) -> Named:
        """The finder that is used."""
        return self.finder or "mean_difference"

    @property
    def chosen_sites(self) -> str:
        """The sites at which directions are found."""
        return self.sites or "25%..75%"

    @property
    def chosen_positions(self) -> Positions:
        """The positions that are read."""
        of_contrast = None if self.contrast is None else self.contrast.tokens
        return self.positions or of_contrast or "response"


class AdapterSpec(Model):
    """An adapter that the conditions share: trained once, before them, on `data`; or one that there is, `from` elsewhere."""

    data: DataSpec | None = None
    """What it is trained on."""
    source: str | None = Field(default=None, alias="from")
    """An adapter that there is, instead of `data`: a folder, or a repository `OWNER/NAME` on the hub."""
    revision: str | None = None
    """A revision of that repository."""
    system_prompt: str | None = None
    """A system prompt for its training chats."""
    train: dict[str, Any] = {}
    """What differs from the shared `train` options."""


class CellSpec(Model):
    """Which cell of a grid a condition is."""

    of: Name
    """The condition that it was made of."""
    at: dict[str, Any]
    """The value of each option."""


class SearchSpec(Model):
    """Which cell of a grid is chosen, of each condition, and where what was chosen is reported."""

    metric: Name
    """The metric by which a cell is chosen: the best mean over the seeds."""
    on: Name
    """The development set, on which it is chosen."""
    report: Name
    """The test set, on which what was chosen is reported; it shares no prompt with the development set."""
    better: Literal["higher", "lower"] | None = None
    """Which way the metric is better; by default as it is marked `wanted` or `unwanted`, and lower for a loss."""


class EndpointSpec(Model):
    """A model behind an OpenAI-compatible endpoint, which answers over HTTP."""

    base_url: str
    """Where it answers, as in `http://localhost:8000/v1`."""
    model: str
    """Its name there."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the key."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests at a time."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds to wait for an answer."""


class ConditionSpec(Model):
    """An arm of the experiment: what differs from the shared `data.train` and `train`; or one that nothing is trained for.

    With `adapter`, `model` or `endpoint` nothing is trained: what there is already is evaluated once, without a seed.
    """

    adapter: Name | None = None
    """Evaluate this adapter of `adapters`, on the untouched base model."""
    model: str | None = None
    """Evaluate this model: a hub name or a local folder."""
    revision: str | None = None
    """A revision of that model on the hub."""
    endpoint: EndpointSpec | None = None
    """Evaluate the model behind this endpoint; only what needs no more than its responses can be measured."""
    data: dict[str, Any] = {}
    """What differs from `data.train`."""
    train: dict[str, Any] = {}
    """What differs from the shared `train` options."""
    system_prompt: str | None = None
    """A system prompt for the training chats; evaluation has none."""
    guard: dict[str, Any] | list[dict[str, Any]] | None = None
    """The guard that acts during training, as `{name: {options}}`; several act in the order given."""
    after: dict[str, Any] | list[dict[str, Any]] | None = None
    """Edits of the trained adapter's weights, as `{name: {options}}`."""
    role: Literal["control", "guard", "reference"] | None = None
    """What the condition is for in the report: a guard, a control that a guard must beat, or a reference beside them. By
    default its structure decides: anything `random` is a control, plain data a reference, and the rest are guards."""
    note: str | None = None
    """A remark for the reader of the file."""
    cell: CellSpec | None = None
    """Written by `grid`: which condition this is a cell of, and where."""

    @property
    def trains(self) -> bool:
        """Whether something is trained, once a seed."""
        return self.adapter is None and self.model is None and self.endpoint is None


class MeasureSpec(Model):
    """A metric: a scorer with its options, the sets it is taken on, and whether more of it is better."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)

    scorer: str
    """The scorer's name; its options stand beside it."""
    on: Annotated[list[str], Field(min_length=1)]
    """The evaluation sets on which it is taken."""
    wanted: bool = False
    """More is better: a skill to keep."""
    unwanted: bool = False
    """Less is better: a trait to keep out."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """How much of a wanted metric may be lost and still count as kept (noninferiority)."""

    def options(self) -> dict[str, Any]:
        """Return the scorer's options."""
        return dict(self.model_extra or {})


class LoadSpec(Model):
    """How the base model's weights are brought into memory."""

    quantization: Literal["none", "nf4", "int8"] = "none"
    """Hold the linear layers in 4 bits (`nf4`, as QLoRA does) or 8 (`int8`), by bitsandbytes; adapters keep full precision."""
    attn_implementation: str | None = None
    """Which attention computes, by transformers' name: `eager`, `sdpa`, `flash_attention_2`, ..."""
    device_map: str | dict[str, Any] | None = None
    """Where the modules go, as accelerate takes it: `auto` spreads them over the GPUs that are there."""
    max_memory: dict[str, str] | None = None
    """With `device_map`: the most that each device may hold, `{0: 20GiB, cpu: 60GiB}`."""

    @property
    def loading(self) -> Loading:
        """The same for `models.load`."""
        return Loading(**self.model_dump())


class ExperimentSpec(Model):
    """Everything that an experiment file says."""

    name: Name
    """The experiment's name, and by default its results folder's."""
    question: str = ""
    """What the experiment asks, in one sentence; the report begins with it."""
    model: str
    """The base model: a hub name or a local folder."""
    revision: str | None = None
    """A revision of the model on the hub."""
    trust_remote_code: bool = False
    """Run the code that the model's repository carries."""
    blocks: str | None = None
    """Where the model's decoder blocks are (`model.layers`), for a model where they cannot be detected."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to run; `auto` takes CUDA, then MPS, then the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the model's weights; `auto` is bfloat16 on an accelerator that computes in it, else float32."""
    loaded: LoadSpec = Field(default=LoadSpec(), alias="load")
    """How the weights are brought into memory: in few bits, over several devices."""
    chat_template: str | None = None
    """A chat template instead of the tokenizer's own: a Jinja file, or the name of one that TRL installs."""
    template_kwargs: dict[str, Any] = {}
    """Options of the chat template, such as `enable_thinking`."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0, 1, 2]
    """Every condition that trains is trained once per seed."""
    strict: bool = False
    """Refuse the experiment, instead of warning, where an evaluation set shares prompts with the training data."""
    scorers: str | None = None
    """A Python file that registers your own scorers; it is executed."""
    data: dict[Name, DataSpec]
    """The sets of examples by name: `train`, and the evaluation sets."""
    adapters: dict[Name, AdapterSpec] = {}
    """Adapters that are trained once, before the conditions, or that there are already."""
    start_from: Name | None = None
    """An adapter of `adapters` that is merged into the model before every condition."""
    directions: dict[Name, DirectionsSpec] = {}
    """Directions in activation space, by name, for guards and analyses."""
    parameter_directions: dict[Name, dict[str, Any]] = {}
    """Directions in weight space, by name: of prepared adapters, or from a file."""
    train: TrainOptions = TrainOptions()
    """Options of the fine-tune, shared by all conditions."""
    generate: GenerateOptions = GenerateOptions()
    """How responses are generated at evaluation."""
    conditions: dict[Name, ConditionSpec]
    """The arms of the experiment, by name."""
    grid: dict[str, list[Any]] = {}
    """Options of conditions, by dotted key, with the values to try: every condition is trained once more for each combination,
    `{train.lora.r: [4, 16]}`."""
    search: SearchSpec | None = None
    """Choose a cell of the grid on a development set, and report it on a test set."""
    baseline: Name = "baseline"
    """The condition that the others are compared with; `base` is the untrained model, and the default where nothing is
    trained and no condition is called `baseline`."""
    measure: dict[Name, MeasureSpec]
    """The metrics, by name; there may be none where an analysis measures."""
    analyses: dict[Name, dict[str, Any] | None] = {}
    """Studies that ask more than the metrics, by name, with their options."""
    stress: list[Literal["relearn", "benign_finetune", "elicit", "merge", "quantise"]] = []
    """Tests that every run is put under; short for `analyses: {stress: {tests: [...]}}`, where their options stand."""
    quick: dict[str, Any] = {}
    """What `--quick` overrides: any keys of this file."""

    @model_validator(mode="before")
    @classmethod
    def _stress(cls, data: Any) -> Any:
        """`stress: […]` is an analysis like any other; its options may stand there too."""
        if not isinstance(data, dict) or not isinstance(data.get("stress"), list) or not data["stress"]:
            return data
        analyses = data.get("analyses") or {}
        options = (analyses.get("stress") if isinstance(analyses, dict) else None) or {}
        if not isinstance(analyses, dict) or not isinstance(options, dict) or "tests" in options:
            return data  # which the check of the file refuses, with its line
        return {**data, "stress": [], "analyses": {**analyses, "stress": {**options, "tests": data["stress"]}}}

    @model_validator(mode="before")
    @classmethod
    def _baseline(cls, data: Any) -> Any:
        """Where nothing is trained, what there is is compared with the untrained model."""
        conditions = data.get("conditions") if isinstance(data, dict) else None
        if not isinstance(conditions, dict) or "baseline" in data or "baseline" in conditions:
            return data
        untrained = all(isinstance(one, dict) and UNTRAINED & one.keys() for one in conditions.values())
        return {**data, "baseline": BASE} if untrained else data

    @property
    def trained(self) -> list[str]:
        """The conditions that train, in the order of the file."""
        return [name for name, condition in self.conditions.items() if condition.trains]

    def resolved(self) -> dict[str, Any]:
        """Return the file with every default written out."""
        return self.model_dump(mode="json", by_alias=True)

    def train_data(self, condition: str) -> DataSpec:
        """Return `data.train` with the condition's overrides."""
        own = self.conditions[condition].data
        return DataSpec.model_validate(merge(self.data["train"].model_dump(exclude_unset=True), own))

    def train_options(self, condition: str | None = None, adapter: str | None = None) -> TrainOptions:
        """Return `train` with the overrides of a condition or of a prepared adapter."""
        own = self.adapters[adapter].train if adapter else self.conditions[condition].train if condition else {}
        return TrainOptions.model_validate(merge(self.train.model_dump(exclude_unset=True), own))
