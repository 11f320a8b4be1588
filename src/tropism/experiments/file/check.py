"""The rules of an experiment file that involve more than one key: every name is defined, every option has an owner.

Nothing here loads a model or reads data; `experiments.checks` does the latter.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tropism.data import sources
from tropism.data.templates import template_text
from tropism.data.transforms import TRANSFORMS
from tropism.errors import DataError, ModelError, SiteError, SpecError
from tropism.experiments.analyses import ANALYSES, RENAMED, known_analysis, load_analysis
from tropism.experiments.file import guards
from tropism.experiments.file.backend import check_backend
from tropism.experiments.file.complaints import At, Under, listed, message
from tropism.experiments.file.options import from_options, name_and_options
from tropism.experiments.file.search import check_search
from tropism.experiments.file.spec import (
    AdapterSpec,
    ConditionSpec,
    ContrastSpec,
    DataSpec,
    DirectionsSpec,
    EndpointSpec,
    ExperimentSpec,
    MeasureSpec,
)
from tropism.experiments.file.yaml_file import Key
from tropism.names import BASE

if TYPE_CHECKING:
    from tropism.evals.judges.endpoint import Endpoint

MOST_LAYERS = 10_000
"""A selector of layers is read for a model of this many, because the model is not known yet."""


def check(e: ExperimentSpec) -> None:
    """Raise `At`, with the key to complain about, for the first rule that the file breaks."""
    from tropism.evals.scorers.registry import register_file

    _check_names(e)
    if e.chat_template is not None:
        try:
            template_text(e.chat_template)
        except DataError as error:
            raise At(("chat_template",), str(error).removeprefix("chat_template: ")) from None
    if e.scorers:
        with Under(("scorers",)):
            register_file(e.scorers)
    for name, data in e.data.items():
        check_data(data, ("data", name))
    for name, adapter in e.adapters.items():
        _check_adapter(e, name, adapter)
    for name, directions in e.directions.items():
        _check_directions(e, directions, ("directions", name))
    for name, options in e.parameter_directions.items():
        with Under(("parameter_directions", name)):
            guards.check_parameter_directions(options, set(e.adapters))
    for name, condition in e.conditions.items():
        _check_condition(e, name, condition)
    for name, measure in e.measure.items():
        _check_measure(e, name, measure)
    check_backend(e)
    if e.search is not None:
        check_search(e, e.search)
    if e.stress:
        raise At(("stress",), "is given, and so is analyses.stress.tests; keep one of the two")
    for name, given in e.analyses.items():
        if not known_analysis(name):
            raise At(("analyses", name), f"no analysis is called {name!r}; available: {listed(ANALYSES)}")
        if RENAMED.get(name) in e.analyses:
            raise At(("analyses", name), f"{name!r} is the older name of {RENAMED[name]!r}; give one of the two")
        with Under(("analyses", name)):
            load_analysis(name, given or {}).check(e)


def _check_names(e: ExperimentSpec) -> None:
    if e.trained and "train" not in e.data:
        raise At(("data",), f"must define the set 'train', found {listed(e.data)}")
    if not e.conditions and e.baseline != BASE:
        raise At(
            ("conditions",), "must define a condition, found none; with 'baseline: base' the model alone is evaluated"
        )
    if e.baseline not in (BASE, *e.conditions):
        raise At(
            ("conditions",),
            f"must define the baseline {e.baseline!r}, found {listed(e.conditions)}; name another with 'baseline:', such "
            f"as {BASE!r}, the untrained model",
        )
    if not e.measure and not e.analyses:
        raise At(("measure",), "must define a metric, or 'analyses' one that measures, found none")
    if BASE in e.conditions:
        raise At(("conditions", BASE), f"{BASE!r} is the untrained model's name; call the condition something else")
    if len(set(e.seeds)) < len(e.seeds):
        raise At(("seeds",), f"a seed is given twice, found {e.seeds}")
    if e.loaded.max_memory is not None and e.loaded.device_map is None:
        raise At(
            ("load", "max_memory"), "does nothing without device_map, which spreads the weights; set device_map: auto"
        )
    if e.loaded.quantization != "none" and e.generate.dtype != "auto":
        raise At(
            ("generate", "dtype"),
            f"cannot be had of weights in few bits (load: {{quantization: {e.loaded.quantization}}}), found "
            f"{e.generate.dtype!r}; set it to auto",
        )
    if e.start_from and e.loaded.quantization != "none":
        raise At(
            ("start_from",),
            f"is merged into the weights, and those of load: {{quantization: {e.loaded.quantization}}} would round it away; drop "
            f"one of the two",
        )
    if e.start_from and e.start_from not in e.adapters:
        raise At(("start_from",), f"no adapter is called {e.start_from!r}; available: {listed(e.adapters)}")


def check_data(spec: DataSpec, key: Key) -> None:
    """Raise `At` unless the set names one source (or several) that can exist, and transforms that do."""
    if bool(spec.source) == bool(spec.sources):
        raise At(key, "give 'source', or 'sources' for several, and not both")
    for source in spec.names():
        try:
            sources.check(source, **spec.options())
        except DataError as error:
            raise At((*key, "source" if spec.source else "sources"), str(error)) from None
    with Under((*key, "transform")):
        spec.transforms()
    for index, more in enumerate(spec.also):
        check_data(more, (*key, "also", index))


def _check_adapter(e: ExperimentSpec, name: str, adapter: AdapterSpec) -> None:
    key = ("adapters", name)
    if (adapter.data is None) == (adapter.source is None):
        raise At(key, "give 'data' to train it, or 'from' for one that there is, and not both")
    if adapter.data is not None:
        if adapter.revision is not None:
            raise At((*key, "revision"), "belongs to 'from', and this adapter is trained; drop it")
        check_data(adapter.data, (*key, "data"))
        _check_train(e, (*key, "train"), adapter=name)
        if e.train_options(adapter=name).adapter == "full":
            raise At((*key, "train"), "a prepared adapter is an adapter; set adapter: lora here")
        return
    for option in ("system_prompt", "train"):
        if getattr(adapter, option):
            raise At((*key, option), "says how an adapter is trained, and this one is there already; drop it")
    assert adapter.source is not None  # one of the two
    if not _is_on_hub(adapter.source):
        _check_adapter_folder(e, adapter, key)


def _is_on_hub(name: str) -> bool:
    """Whether a name can only be one of the hub's: asking there is not for a check of the file."""
    return not Path(name).expanduser().is_dir() and not name.startswith((".", "/", "~")) and name.count("/") == 1


def _check_adapter_folder(e: ExperimentSpec, adapter: AdapterSpec, key: Key) -> None:
    from tropism import models
    from tropism.adapters.folder import open_adapter
    from tropism.adapters.load import differs

    try:
        found = open_adapter(models.resolve_adapter(str(adapter.source), revision=adapter.revision).path)
    except ModelError as error:
        raise At((*key, "from"), str(error)) from None
    if differs(found.base_model, e.model):
        raise At((*key, "from"), f"was trained on {found.base_model!r}, and the experiment's model is {e.model!r}")


def _check_train(e: ExperimentSpec, key: Key, *, condition: str | None = None, adapter: str | None = None) -> None:
    try:
        options = e.train_options(condition, adapter)
    except ValidationError as error:
        raise At((*key, *error.errors()[0]["loc"]), message(error)) from None
    if options.parallel == "fsdp2" and e.loaded.quantization != "none":
        raise At(
            (*key, "parallel"),
            f"fsdp2 divides weights number by number, and load: {{quantization: {e.loaded.quantization}}} packs them; use ddp",
        )
    if options.processes > 1 and e.loaded.device_map is not None:
        raise At(
            (*key, "processes"),
            f"each process holds the model on a GPU of its own, and load: {{device_map: {e.loaded.device_map}}} places it once, "
            f"found {options.processes}; drop one of the two",
        )
    if options.eval_on is not None and (options.eval_on not in e.data or options.eval_on == "train"):
        others = [name for name in e.data if name != "train"]
        raise At((*key, "eval_on"), f"no evaluation set is called {options.eval_on!r}; defined are {listed(others)}")


_RESERVED = ("adapters", "analyses", "directions", "figures", "tracking")
"""What else lies in a results folder: a condition with one run lies there under its own name."""


def _check_untrained(e: ExperimentSpec, name: str, condition: ConditionSpec) -> None:
    """A condition that names what there is already: one thing, and nothing that says how to train."""
    key = ("conditions", name)
    if name in _RESERVED:
        raise At(key, f"a condition that is not trained must not be called {listed(_RESERVED)}; choose another name")
    given = [option for option in ("adapter", "model", "endpoint") if getattr(condition, option) is not None]
    if len(given) > 1:
        raise At((*key, given[1]), f"a condition is one of adapter, model and endpoint, found {listed(given)}")
    for option in ("data", "train", "system_prompt", "guard", "after"):
        if getattr(condition, option):
            raise At(
                (*key, option), f"says how to train, and nothing is trained for a condition with {given[0]!r}; drop it"
            )
    if condition.revision is not None and condition.model is None:
        raise At((*key, "revision"), f"belongs to 'model', and this condition has {given[0]!r}; drop it")
    if condition.adapter is not None and condition.adapter not in e.adapters:
        raise At((*key, "adapter"), f"no adapter is called {condition.adapter!r}; defined are {listed(e.adapters)}")
    if condition.endpoint is not None:
        with Under((*key, "endpoint")):
            endpoint_of(condition.endpoint, e)


def endpoint_of(spec: EndpointSpec, e: ExperimentSpec) -> "Endpoint":
    """Return where a condition's model answers, with the file's options of generation; raises `SpecError`."""
    from tropism.evals.judges.endpoint import Endpoint

    asked = e.generate
    body: dict[str, Any] = {"top_p": asked.top_p} if asked.top_p < 1 else {}
    # The last three are no part of OpenAI's own interface; servers of open models (vLLM) take them by these names.
    body |= {"stop": asked.stop} if asked.stop else {}
    body |= {"top_k": asked.top_k} if asked.top_k else {}
    body |= {"repetition_penalty": asked.repetition_penalty} if asked.repetition_penalty != 1.0 else {}
    body |= {"min_tokens": asked.min_new_tokens} if asked.min_new_tokens else {}
    return Endpoint(
        spec.model,
        spec.base_url,
        spec.api_key_env,
        temperature=e.generate.temperature,
        concurrency=spec.concurrency,
        timeout=spec.timeout,
        extra_body=body,
    )


def _check_condition(e: ExperimentSpec, name: str, condition: ConditionSpec) -> None:
    if not condition.trains:
        _check_untrained(e, name, condition)
        return
    key = ("conditions", name)
    if condition.revision is not None:
        raise At((*key, "revision"), "belongs to 'model', and this condition is trained; drop it")
    unknown = set(condition.data) - set(DataSpec.model_fields)
    if unknown:
        raise At((*key, "data", min(unknown)), f"unknown key; available: {listed(DataSpec.model_fields)}")
    try:
        check_data(e.train_data(name), (*key, "data"))
    except ValidationError as error:
        raise At((*key, "data", *error.errors()[0]["loc"]), message(error)) from None
    _check_train(e, (*key, "train"), condition=name)
    if name == e.baseline and condition.role in ("control", "guard"):
        raise At(
            (*key, "role"), f"the baseline is what guards and controls are compared with, found {condition.role!r}"
        )
    if e.train_options(name).adapter == "full":
        _check_full(e, condition, key)
    if e.train_options(name).parallel == "fsdp2" and _has(condition, "kl_to_base"):
        raise At(
            (*key, "guard"),
            "kl_to_base runs the base model inside a pass, which parallel: fsdp2 cannot; use parallel: ddp",
        )
    with Under((*key, "guard")):
        guards.check_guard(condition.guard, set(e.directions), set(e.parameter_directions), set(e.adapters))
    with Under((*key, "after")):
        guards.check_after(condition.after, set(e.parameter_directions))
        before = e.trained[: e.trained.index(name)]
        for other in guards.norms_of(condition.after):
            if other not in before:
                raise SpecError(f"`norm` must name a trained condition that stands before {name!r}, found {other!r}")


def _has(condition: ConditionSpec, guard: str) -> bool:
    return any(name == guard for name, _ in guards.parts(condition.guard))


def _check_full(e: ExperimentSpec, condition: ConditionSpec, key: Key) -> None:
    """A condition that trains every weight: what needs an adapter has no place in it."""
    if _has(condition, "kl_to_base"):
        raise At(
            (*key, "guard"),
            "kl_to_base needs the base model, which is the model with its adapter off, and adapter: full trains none; use lora",
        )
    if _has(condition, "gradient_routing"):
        raise At(
            (*key, "guard"), "gradient_routing updates one of two adapters, and adapter: full trains none; use lora"
        )
    if condition.after is not None:
        raise At((*key, "after"), "edits what an adapter learned, and adapter: full trains none; use lora")
    if e.loaded.quantization != "none":
        raise At(
            (*key, "train"),
            f"adapter: full trains the weights, which load: {{quantization: {e.loaded.quantization}}} rounds",
        )


def _check_measure(e: ExperimentSpec, name: str, measure: MeasureSpec) -> None:
    from tropism.evals.scorers.base import ModelScorer
    from tropism.evals.scorers.registry import load_scorer

    for index, data in enumerate(measure.on):
        if data not in e.data or data == "train":
            others = [other for other in e.data if other != "train"]
            raise At(
                ("measure", name, "on", index),
                f"no evaluation set is called {data!r}; available: {listed(others)}",
            )
    if measure.wanted and measure.unwanted:
        raise At(("measure", name), "a metric is wanted or unwanted, found both")
    with Under(("measure", name)):
        scorer = load_scorer(measure.scorer, measure.options())
    if measure.wanted and isinstance(scorer, ModelScorer) and scorer.lower_is_better:
        raise At(
            ("measure", name, "wanted"),
            f"wanted says that more is better, and of {measure.scorer} less is; leave 'wanted' out, or take response_likelihood",
        )


def _check_directions(e: ExperimentSpec, spec: DirectionsSpec, key: Key) -> None:
    from tropism.site import select_layers

    if bool(spec.contrast) == bool(spec.file):
        raise At(key, "give 'contrast' to find directions or 'file' to read them, and not both")
    try:
        select_layers(spec.chosen_sites, MOST_LAYERS)
    except SiteError as error:
        raise At((*key, "sites"), str(error)) from None
    if spec.file:
        _check_directions_file(spec, key)
        return
    if spec.reading is not None:
        raise At((*key, "reading"), "applies only to directions that are read from a file; remove it")
    with Under((*key, "finder")):
        guards.check_finder(spec.chosen_finder)
        if spec.contrast is not None and spec.contrast.of == "data" and guards.finder(spec.chosen_finder).needs_pairs:
            raise SpecError(
                "finder 'pca' takes differences of pairs, and two data sets have none; write {pca: {of: positive}}, or take "
                "a contrast of responses or of system_prompts"
            )
    if spec.behaviour is not None:
        _check_behaviour(e, spec, spec.behaviour, (*key, "behaviour"))
    if spec.contrast is None:
        return
    _check_contrast(e, spec.contrast, (*key, "contrast"))
    tokens, options = spec.contrast.tokens, name_and_options(spec.chosen_finder, "finder")[1]
    if tokens is not None and spec.positions not in (None, tokens):
        raise At(
            (*key, "positions"), f"says {spec.positions!r}, and the contrast's 'tokens' {tokens!r}; keep one of the two"
        )
    if spec.contrast.pool is not None and options.get("per", spec.contrast.pool) != spec.contrast.pool:
        raise At(
            (*key, "finder"),
            f"says per: {options['per']!r}, and the contrast's 'pool' {spec.contrast.pool!r}; keep one",
        )


def _check_directions_file(spec: DirectionsSpec, key: Key) -> None:
    """Directions that are read: what says how to find them has no place there."""
    from tropism.directions.foreign import Reading

    for file in spec.files():
        if not Path(file).is_file():
            raise At((*key, "file"), f"no such file: {file!r}; check the path")
    for name in ("finder", "positions", "behaviour"):
        if (found := getattr(spec, name)) is not None:
            raise At(
                (*key, name),
                f"says how directions are found and validated, and these are read from a file, found {found!r}; drop it",
            )
    with Under((*key, "reading")):
        from_options({"reading": spec.reading or {}}, {"reading": Reading}, "option")
    if "components" in (spec.reading or {}):
        raise At((*key, "reading", "components"), "is an option of the directions themselves; put it beside 'file'")


def _check_behaviour(e: ExperimentSpec, spec: DirectionsSpec, metric: str, key: Key) -> None:
    from tropism.evals.scorers.base import ResponseScorer
    from tropism.evals.scorers.registry import load_scorer

    if metric not in e.measure:
        raise At(key, f"no metric is called {metric!r}; available: {listed(e.measure)}")
    measure = e.measure[metric]
    if not isinstance(load_scorer(measure.scorer, measure.options()), ResponseScorer):
        raise At(key, f"must be a metric that scores responses by a rule, found {metric!r} ({measure.scorer})")


_OF_MODELS = ("tuned", "base", "chats", "tokens", "pool")
"""The options that only a contrast of models has."""


def _check_contrast(e: ExperimentSpec, contrast: ContrastSpec, key: Key) -> None:
    if contrast.of == "models":
        _check_contrast_of_models(e, contrast, key)
        return
    _refuse_given(contrast, _OF_MODELS, key, f"only a contrast of models has it, and this one is of {contrast.of}")
    if contrast.of == "data":
        _check_contrast_of_data(e, contrast, key)
        return
    if contrast.source is None:
        raise At((*key, "source"), "is required and missing")
    try:
        sources.check(contrast.source, **contrast.options())
    except DataError as error:
        raise At((*key, "source"), str(error)) from None
    with Under((*key, "transform")):
        contrast.transforms()
    if contrast.of == "system_prompts":
        if not (contrast.promote and contrast.suppress):
            raise At(key, "a contrast of system_prompts needs 'promote' and 'suppress'")
        _refuse_given(
            contrast, ("positive", "negative"), key, "a contrast of system_prompts has 'promote' and 'suppress'"
        )
        return
    _refuse_given(contrast, ("promote", "suppress"), key, "a contrast of responses has 'positive' and 'negative'")
    for side in ("positive", "negative"):
        with Under((*key, side)):
            from_options(_side(contrast, side) or "plain", TRANSFORMS, "transform")
    named = {"positive", "negative"} & set(contrast.columns or {})
    if named and (contrast.positive or contrast.negative):
        raise At(
            (*key, "columns"), f"names the column {min(named)!r}, and a transform makes the sides; keep one of the two"
        )


def _check_contrast_of_data(e: ExperimentSpec, contrast: ContrastSpec, key: Key) -> None:
    options = ("source", "size", "split", "seed", "subset", "columns", "path", "transform", "promote", "suppress")
    why = "a contrast of data takes only 'positive' and 'negative'; set it on the data sets under 'data:'"
    _refuse_given(contrast, options, key, why)
    for side in ("positive", "negative"):
        name = _side(contrast, side)
        if name not in e.data:
            raise At((*key, side), f"no data set is called {name!r}; available: {listed(e.data)}")


def _check_contrast_of_models(e: ExperimentSpec, contrast: ContrastSpec, key: Key) -> None:
    others = sorted(set(ContrastSpec.model_fields) - {"of", *_OF_MODELS})
    _refuse_given(contrast, tuple(others), key, "a contrast of models reads 'chats'; set it on that set under 'data:'")
    for option in ("tuned", "chats"):
        if getattr(contrast, option) is None:
            raise At((*key, option), "is required of a contrast of models, and missing")
    for option in ("tuned", "base"):
        named = getattr(contrast, option)
        if isinstance(named, str) and named not in e.adapters:
            raise At((*key, option), f"no adapter is called {named!r}; defined are {listed(e.adapters)}")
    if contrast.tuned == contrast.base:
        raise At((*key, "base"), f"must be another model than 'tuned', found {contrast.base!r} for both")
    if contrast.chats not in e.data:
        raise At((*key, "chats"), f"no data set is called {contrast.chats!r}; defined are {listed(e.data)}")


def _refuse_given(contrast: ContrastSpec, names: tuple[str, ...], key: Key, why: str) -> None:
    """Raise `At` for the first of these options that was given another value than its default."""
    for name in names:
        found = getattr(contrast, name)
        if found != ContrastSpec.model_fields[name].default:
            raise At((*key, name), f"does nothing here, found {found!r}: {why}")


def _side(contrast: ContrastSpec, side: str) -> Any:
    return contrast.positive if side == "positive" else contrast.negative
