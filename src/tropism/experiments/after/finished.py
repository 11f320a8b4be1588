"""A results folder, read again after `tropism run`: its experiment, which of its runs may be used, and their adapters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tropism import models
from tropism.errors import RunFolderError, SpecError
from tropism.experiments.file.complaints import listed, message
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import Folder, RunKey
from tropism.names import BASE
from tropism.results.folder import read_json

WEIGHTS = "adapter_model.safetensors"
_SEED = re.compile(r"seed-(\d+)")


@dataclass(frozen=True)
class Finished:
    """An experiment and its folder; nothing in the folder is changed."""

    experiment: ExperimentSpec
    folder: Folder

    @classmethod
    def read(cls, path: Path) -> "Finished":
        """Raises `RunFolderError` where there is no experiment, or one that this version cannot read."""
        spec = path / "experiment.yaml"
        if not spec.is_file():
            raise RunFolderError(f"{path} holds no experiment.yaml, so it is no results folder")
        try:
            experiment = ExperimentSpec.model_validate(yaml.safe_load(spec.read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise RunFolderError(f"{spec} is not YAML ({reason}); run the experiment again to write it anew") from None
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise RunFolderError(
                f"{spec}: {key or 'the file'}: {message(error)}; run the experiment again to write it anew"
            ) from None
        return cls(experiment, Folder(path))

    def key(self, condition: str, seed: int | None = None) -> RunKey:
        """A run by its names; without a seed the experiment's first. Raises `SpecError` for what is not defined."""
        e = self.experiment
        if condition != BASE and condition not in e.conditions:
            raise SpecError(f"no condition is called {condition!r}; available: {listed([BASE, *e.conditions])}")
        if seed is not None and seed not in e.seeds:
            raise SpecError(f"--seed: the experiment {e.name!r} has no seed {seed}; its seeds are {listed(e.seeds)}")
        alone = condition == BASE or not e.conditions[condition].trains
        return RunKey(condition, None if alone else e.seeds[0] if seed is None else seed)

    def done(self) -> list[RunKey]:
        """The trained runs that are finished, by their stamps alone, in the order of the file."""
        keys = [RunKey(name, seed) for name in self.experiment.trained for seed in self.experiment.seeds]
        return [key for key in keys if (self.folder.run_path(key) / "DONE.json").is_file()]

    def check(self, key: RunKey) -> None:
        """Raises `RunFolderError` where a trained run failed, was not finished, or was changed since."""
        path = self.folder.run_path(key)
        others = f"finished are {listed(self.done())}"
        if not (path / "DONE.json").is_file():
            if (path / "FAILED.json").is_file():
                reason = read_json(path / "FAILED.json").get("error", "no reason was written")
                raise RunFolderError(f"the run {key} failed ({reason}); {others}")
            raise RunFolderError(f"the run {key} is not finished; run the experiment again to go on, {others}")
        # Here, so that the status of a folder is read without torch.
        from tropism.adapters.whole import is_whole

        if is_whole(path / "adapter"):
            raise RunFolderError(
                f"the run {key} trained every weight of the model (adapter: full), so it has no adapter to load beside "
                f"others; its folder {path.name}/adapter is a model of its own: transformers and tropism.models.load read it"
            )
        if not adapter_folders(path / "adapter"):
            raise RunFolderError(
                f"the run {key} has no adapter stored (there is no {path.name}/adapter/{WEIGHTS}); run the experiment "
                f"again to train it anew"
            )
        read_json(path / "DONE.json")
        if not self.folder.finished(key):
            raise RunFolderError(
                f"a file of the run {key} is missing or was changed after it finished; run the experiment again"
            )

    def adapters(self, key: RunKey) -> Mapping[str, Path]:
        """What a run learned: `{"": FOLDER}`, or `{"retain": …, "forget": …}` of two adapters; nothing if untrained.

        Raises as `check`.
        """
        if key.condition == BASE:
            return {}
        spec = self.experiment.conditions[key.condition]
        if spec.adapter is not None:
            # Here, so that the status of a folder is read without torch.
            from tropism.experiments.start import intact_adapter

            return {"": intact_adapter(self.folder, spec.adapter)}
        if not spec.trains:
            raise RunFolderError(
                f"{key.condition!r} is a whole model or an endpoint, of which there is no adapter here; choose another "
                f"condition, defined are {listed([BASE, *self.experiment.conditions])}"
            )
        self.check(key)
        return adapter_folders(self.folder.run_path(key) / "adapter")

    def environment(self) -> Mapping[str, Any]:
        """`environment.json`, or nothing where there is none."""
        file = self.folder.path / "environment.json"
        return read_json(file) if file.is_file() else {}

    def source(self) -> tuple[models.Source, str]:
        """The base model, at the revision that was trained on where the hub has it; and what to know of it."""
        recorded = self.environment().get("model") or {}
        revision = self.experiment.revision
        if revision is None and recorded.get("kind") == "hub":
            revision = recorded.get("revision")
        source = models.resolve(self.experiment.model, revision=revision)
        if not recorded or (source.kind, source.revision) == (recorded.get("kind"), recorded.get("revision")):
            return source, source.note
        was = f"{recorded.get('kind')} {recorded.get('revision') or ''}".strip()
        now = f"{source.kind} {source.revision or ''}".strip()
        return source, f"the runs were trained on another copy of the model ({was}) than this one ({now})"


def locate(path: str | Path) -> tuple[Finished, RunKey | None]:
    """The results that a path is, or lies in; and the run, where the path is one (`runs/caps/caft/seed-0`).

    Raises `RunFolderError` where neither the path nor what it lies in is a results folder.
    """
    given = Path(path)
    if not given.is_dir():
        raise RunFolderError(f"there is no folder {given}; give one that `tropism run` wrote, or a run inside it")
    if (given / "experiment.yaml").is_file():
        return Finished.read(given), None
    absolute = given.resolve()
    for above in (absolute.parent, absolute.parent.parent):
        if (above / "experiment.yaml").is_file():
            found = Finished.read(above)
            condition, *rest = absolute.relative_to(above).parts
            seed = _SEED.fullmatch(rest[0]) if rest else None
            if rest and seed is None:
                break
            return found, found.key(condition, int(seed.group(1)) if seed else None)
    raise RunFolderError(f"{given} holds no experiment.yaml, so it is no results folder, nor is it a run inside one")


def adapter_folders(path: Path) -> dict[str, Path]:
    """The PEFT folders in a run's `adapter/`, as `{"": path}` or by the names of two adapters; empty for none."""
    if (path / WEIGHTS).is_file():
        return {"": path}
    both = {name: path / name for name in ("retain", "forget")}
    return both if all((folder / WEIGHTS).is_file() for folder in both.values()) else {}
