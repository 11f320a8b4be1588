"""Which runs an experiment has, in which order, and which of them need another one first."""

from collections.abc import Mapping, Sequence
from typing import Any

from tropism.errors import SpecError
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import RunKey
from tropism.names import BASE


def plan(experiment: ExperimentSpec, only: Sequence[str] | None = None) -> list[RunKey]:
    """Return every run of an experiment: the untrained model, what needs no training, then all conditions seed by seed.

    Raises `SpecError` where `only` names a condition that is not there.
    """
    unknown = sorted(set(only or ()) - set(experiment.conditions))
    if unknown:
        raise SpecError(f"--only: no condition is called {unknown[0]!r}; available: {', '.join(experiment.conditions)}")
    chosen = [name for name in experiment.conditions if not only or name in only]
    trained = [name for name in chosen if experiment.conditions[name].trains]
    there = [RunKey(name, None) for name in chosen if name not in trained]
    return [RunKey(BASE, None), *there, *(RunKey(name, seed) for seed in experiment.seeds for name in trained)]


def needs(experiment: ExperimentSpec, source: Mapping[str, Any], key: RunKey) -> list[RunKey]:
    """Return the runs whose adapters a run reads: those it is measured against, and the one it is an edit of."""
    if key.seed is None:
        return []
    # Here, because guards bring in torch, which `tropism status` does without.
    from tropism.experiments import identity
    from tropism.experiments.file import guards

    names = guards.norms_of(experiment.conditions[key.condition].after)
    alike = identity.trained_alike(experiment, source, key.condition)
    return [RunKey(name, key.seed) for name in dict.fromkeys([*names, *([alike] if alike else [])])]
