"""From `guard:` in an experiment file to the guard object: the guards' own fields are the file's options."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, Field

from tropism.data.generate_options import SEEDS_APART
from tropism.errors import SpecError, UsageError
from tropism.experiments.file.options import from_options, name_and_options, shape_of, validated

if TYPE_CHECKING:
    from tropism.adapters.factors import LoraFactors
    from tropism.directions.artifact import Directions
    from tropism.directions.finder import Finder
    from tropism.directions.parameter import ParameterDirections
    from tropism.interventions.base import Intervention

GUARDS = {
    "ablation": "tropism.interventions.ablation:Ablation",
    "gradient_projection": "tropism.interventions.gradient_projection:GradientProjection",
    "steering": "tropism.interventions.steering:Steering",
    "update_constraint": "tropism.interventions.update_constraint:UpdateConstraint",
    "gradient_routing": "tropism.interventions.routing:GradientRouting",
    "frozen_adapter": "tropism.experiments.file.guards:FrozenAdapterOptions",
    "kl_to_base": "tropism.interventions.kl_to_base:KLToBase",
}
"""The name in a file → the class whose frozen fields are the options."""

AFTER = {
    "safe_lora": "tropism.interventions.weights:SafeLoRA",
    "shrinkage": "tropism.interventions.weights:Shrinkage",
}
"""Edits of the weights after training, likewise."""

FINDERS = {
    "mean_difference": "tropism.directions.mean_difference:MeanDifference",
    "pca": "tropism.directions.pca:PCA",
    "logistic_probe": "tropism.directions.probe:LogisticProbe",
    "sae_latents": "tropism.directions.sae:SAELatents",
}

PARAMETER_SOURCES = ("adapter", "adapters", "difference", "file")
"""Where parameter directions may come from: what prepared adapters learned, or a file."""

RandomControl = Annotated[
    bool | Literal["isotropic", "covariance"],
    Field(
        description="Put random directions of the same rank and norms in their place, as a control; true is isotropic."
    ),
]

RandomFactors = Annotated[
    bool, Field(description="Put random factors of the same ranks and norms in their place, as a control.")
]

NAMED = ("directions", "parameter_directions", "adapter")
"""Options that name what a guard uses."""

GuardSpec = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Resources:
    """What the names in a guard stand for, once they were found."""

    directions: Mapping[str, "Directions"] = field(default_factory=dict)
    parameter_directions: Mapping[str, "ParameterDirections"] = field(default_factory=dict)
    adapters: Mapping[str, Any] = field(default_factory=dict)
    """Prepared adapter → its folder."""
    seed: int = 0
    mean_activations: Callable[["Directions"], Any] | None = None
    """Measures the base model's mean at the sites of directions, for `origin: mean`."""
    norm_of: Callable[[str], float] | None = None
    """What another condition learned with the same seed, for `shrinkage: {norm: CONDITION}`."""
    read_adapter: Callable[[Any], Mapping[str, "LoraFactors"]] = lambda folder: _adapter_weights(folder)


@dataclass(frozen=True)
class FrozenAdapterOptions:
    """What a file says of a frozen adapter: the name of a prepared adapter stands for its weights."""

    adapter: str
    """The name of a prepared adapter, under `adapters:`."""
    coefficient: float = 1.0
    """The adapter's contribution is multiplied by this."""
    evaluation: bool | None = None
    """Whether the adapter stays on at evaluation."""
    random: bool = False
    """Put random factors of the same norms in the adapter's place: a control."""

    def build(self, resources: Resources) -> "Intervention":
        """The guard; with `random`, norm-matched factors drawn from the run's seed in the adapter's place."""
        from tropism.interventions.frozen_adapter import FrozenAdapter

        if self.adapter not in resources.adapters:
            defined = ", ".join(sorted(resources.adapters)) or "none"
            raise SpecError(f"guard 'frozen_adapter': no adapter is called {self.adapter!r}; available: {defined}")
        weights = resources.read_adapter(resources.adapters[self.adapter])
        try:
            guard = FrozenAdapter(weights, self.coefficient, self.evaluation)
        except UsageError as error:
            raise SpecError(f"guard 'frozen_adapter': {error}") from None
        return guard.random_like(resources.seed) if self.random else guard


def parts(spec: GuardSpec) -> list[tuple[str, dict[str, Any]]]:
    """(name, options) of each single guard; a list or a mapping of several is a composition in that order."""
    listed = [] if spec is None else [spec] if isinstance(spec, Mapping) else list(spec)
    return [name_and_options({name: options}, "guard") for part in listed for name, options in part.items()]


def check_guard(
    spec: GuardSpec, directions: set[str], parameter_directions: set[str], adapters: Set[str] = frozenset()
) -> None:
    """Check names and options without building anything; raises `SpecError`."""
    _check(spec, GUARDS, directions, parameter_directions, adapters)


def build_guard(spec: GuardSpec, resources: Resources) -> "Intervention | None":
    """The guard that a condition attaches, or None."""
    return _compose(spec, GUARDS, resources)


def uses(spec: GuardSpec) -> set[str]:
    """The names of the (activation or parameter) directions that a guard refers to."""
    return {
        options[key] for _, options in parts(spec) for key in ("directions", "parameter_directions") if key in options
    }


def norms_of(spec: GuardSpec) -> list[str]:
    """The conditions whose learned norm an edit of the weights refers to."""
    return [options["norm"] for _, options in parts(spec) if isinstance(options.get("norm"), str)]


def finder(named: str | Mapping[str, Any]) -> "Finder":
    """Return the finder that a file names."""
    name, _ = name_and_options(named, "finder")
    return from_options(named, {name: finder_class(name)}, "finder")


def finder_class(name: str) -> type["Finder"]:
    """Return the class of a finder by its name."""
    if name not in FINDERS:
        raise SpecError(f"unknown finder {name!r}; available: {', '.join(FINDERS)}")
    cls: type[Finder] = _load(FINDERS[name])
    return cls


def check_finder(named: str | Mapping[str, Any]) -> None:
    """Check a finder's name and options; for SAE latents also that the extra is there, and the SAE where it is a folder.

    Raises `SpecError`, so that a file says what is missing before anything is trained.
    """
    chosen = finder(named)
    if chosen.name != "sae_latents":
        return
    folder = name_and_options(named, "finder")[1].get("folder")
    if folder is not None and ((Path(folder) / "ae.pt").is_file() or Path(folder).name == "ae.pt"):
        return
    if find_spec("sae_lens") is None:
        raise SpecError("finder 'sae_latents' needs the extra 'sae', which is missing: pip install 'tropism[sae]'")
    if folder is not None and not (Path(folder) / "cfg.json").is_file():
        raise SpecError(
            f"finder 'sae_latents': there is no SAE in {str(folder)!r} (no cfg.json); make one with "
            f"'tropism directions train-sae --model MODEL --chats SOURCE --site LAYER --out {folder}'"
        )


def check_parameter_directions(options: Mapping[str, Any], adapters: set[str]) -> None:
    """Check that one source is named: `{adapter: A}`, `{adapters: [A, B]}`, `{difference: [A, B]}` or `{file: PATH}`.

    Raises `SpecError`.
    """
    if "random" in options:
        raise SpecError("'random' belongs to the guard that uses them; write random: true there")
    unknown = set(options) - set(PARAMETER_SOURCES)
    if unknown:
        raise SpecError(f"unknown key {min(unknown)!r}; available: {', '.join(PARAMETER_SOURCES)}")
    if len(options) != 1:
        given = " and ".join(sorted(options)) or "none"
        raise SpecError(f"parameter directions come from exactly one of {', '.join(PARAMETER_SOURCES)}; found {given}")
    ((source, given),) = options.items()
    if source == "file":
        if not Path(str(given)).is_file():
            raise SpecError(f"no such file: {given!r}; check the path")
        return
    named = [given] if source == "adapter" else given
    if not isinstance(named, list) or not named:
        raise SpecError(f"{source} must be a list of prepared adapters, found {given!r}; write [A, B]")
    if source == "difference" and len(named) != 2:
        raise SpecError(f"difference takes two adapters, the first minus the second; found {len(named)}")
    for adapter in named:
        if adapter not in adapters:
            raise SpecError(f"no adapter is called {adapter!r}; available: {', '.join(sorted(adapters)) or 'none'}")


def check_after(spec: GuardSpec, parameter_directions: set[str]) -> None:
    """Edits of the trained adapter's weights: names, options and references, as `check_guard`."""
    _check(spec, AFTER, set(), parameter_directions)


def build_parameter_directions(options: Mapping[str, Any], adapters: Mapping[str, Any]) -> "ParameterDirections":
    """The parameter directions that a file describes, from the folders of prepared adapters."""
    from tropism.directions.foreign_parameters import read_parameter_directions
    from tropism.directions.parameter import parameter_directions

    if "file" in options:
        return read_parameter_directions(options["file"])
    if "difference" in options:
        tuned, other = (adapters[name] for name in options["difference"])
        return parameter_directions(tuned, minus=other)
    named = [options["adapter"]] if "adapter" in options else list(options["adapters"])
    return parameter_directions([adapters[name] for name in named] if len(named) > 1 else adapters[named[0]])


def build_after(spec: GuardSpec, resources: Resources) -> "Intervention | None":
    """The edit of the weights that a condition's adapter is saved with, or None."""
    return _compose(spec, AFTER, resources)


def _check(
    spec: GuardSpec,
    registry: Mapping[str, str],
    directions: set[str],
    parameter_directions: set[str],
    adapters: Set[str] = frozenset(),
) -> None:
    for name, options in parts(spec):
        cls = _class(name, registry)
        given = _validated(name, cls, options)
        for option, kind in _references(cls).items():
            defined = directions if kind == "directions" else parameter_directions
            if given[option] not in defined:
                raise SpecError(
                    f"guard {name!r}: no {kind.replace('_', ' ')} are called {given[option]!r}; available: "
                    f"{', '.join(sorted(defined)) or 'none'}"
                )
    # A guard checks its own options as it is made; unit vectors stand in for directions that are yet to be found.
    _compose(spec, registry, _stand_ins(directions, parameter_directions, adapters))


def _stand_ins(directions: set[str], parameter_directions: set[str], adapters: Set[str]) -> Resources:
    import torch

    from tropism.adapters.factors import LoraFactors
    from tropism.directions.artifact import Directions
    from tropism.directions.parameter import ParameterDirections
    from tropism.site import Site

    unit = torch.eye(2)[:1]
    return Resources(
        {
            name: Directions({Site(0): unit, Site(1): unit}, covariance={Site(0): unit, Site(1): unit})
            for name in directions
        },
        {name: ParameterDirections.of_factors({"weight": (unit.T, unit)}) for name in parameter_directions},
        dict.fromkeys(adapters),
        mean_activations=lambda found: {site: torch.zeros(found.width) for site in found.sites},
        norm_of=lambda _: 1.0,
        read_adapter=lambda _: {"weight": LoraFactors(unit, unit.T, 1.0)},
    )


def _compose(spec: GuardSpec, registry: Mapping[str, str], resources: Resources) -> "Intervention | None":
    built = []
    controlled: list[Any] = []
    for name, options in parts(spec):
        seed = resources.seed
        if options.get("random"):
            # The same directions in two guards have one control; others have another, not the same draw at another norm.
            of = next((options[key] for key in NAMED if key in options), None)
            controlled += [of] if of not in controlled else []
            seed += SEEDS_APART * controlled.index(of)
        built.append(_build(name, _class(name, registry), options, replace(resources, seed=seed)))
    return reduce(lambda left, right: left | right, built) if built else None


def _adapter_weights(folder: Any) -> Mapping[str, "LoraFactors"]:
    from tropism.adapters.read import read_adapter

    return read_adapter(folder, operation="frozen adapter", who="guard 'frozen_adapter'").weights


def _class(name: str, registry: Mapping[str, str]) -> type["Intervention | FrozenAdapterOptions"]:
    if name not in registry:
        raise SpecError(f"unknown guard {name!r}; available: {', '.join(registry)}")
    cls: type[Intervention | FrozenAdapterOptions] = _load(registry[name])
    return cls


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _references(cls: type) -> dict[str, str]:
    """Fields that hold directions: in a file they hold the name of directions that the file defines."""
    from tropism.directions.artifact import Directions
    from tropism.directions.parameter import ParameterDirections

    kinds = {Directions: "directions", ParameterDirections: "parameter_directions"}
    hints = get_type_hints(cls)
    return {f.name: kinds[hints[f.name]] for f in fields(cls) if hints.get(f.name) in kinds}  # type: ignore[arg-type]


def shape(name: str) -> tuple[type[BaseModel], type]:
    """Return the options of a guard or of an edit `after` training, as a file writes them, and its class."""
    cls = _class(name, {**GUARDS, **AFTER})
    return _shape(cls), cls


def _shape(cls: type) -> type[BaseModel]:
    references = _references(cls)
    # Tensors are written as a word in a file, and so is a norm that another condition's run will have.
    replaced = dict.fromkeys(references, str) | {"origin": Literal["zero", "mean"], "norm": float | str | None}
    # Factors of parameters have one kind of control; activations have several.
    control = RandomControl if "directions" in references.values() else RandomFactors
    added = {"random": (control, False)} if references else {}
    return shape_of(cls, replaced, added)


def _validated(name: str, cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the class's own types and defaults; names stand for directions."""
    return validated(_shape(cls), options, f"guard {name!r}")


def _build(
    name: str, cls: type["Intervention | FrozenAdapterOptions"], options: Mapping[str, Any], resources: Resources
) -> "Intervention":
    given = _validated(name, cls, options)
    if issubclass(cls, FrozenAdapterOptions):
        return cls(**given).build(resources)
    random = given.pop("random", False)
    for option, kind in _references(cls).items():
        found: Any = (resources.directions if kind == "directions" else resources.parameter_directions)[given[option]]
        if random:
            control = "isotropic" if random is True else random
            found = (
                found.random_like(seed=resources.seed, kind=control)
                if kind == "directions"
                else found.random_like(resources.seed)
            )
        given[option] = found
    if given.get("origin") == "mean":
        if resources.mean_activations is None:
            raise SpecError(
                f"guard {name!r}: origin 'mean' needs the base model's activations, which are not at hand here"
            )
        given["origin"] = resources.mean_activations(given["directions"])
    if isinstance(given.get("norm"), str):
        if resources.norm_of is None:
            raise SpecError(f"guard {name!r}: norm {given['norm']!r} needs another condition's run, which is not here")
        given["norm"] = resources.norm_of(given["norm"])
    try:
        return cls(**given)
    except UsageError as error:
        raise SpecError(f"guard {name!r}: {error}") from None
