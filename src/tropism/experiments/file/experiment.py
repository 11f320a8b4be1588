"""`Experiment`: an experiment file, read, merged with its overrides and checked."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tropism import notebook
from tropism.errors import SpecError
from tropism.experiments.file.check import check
from tropism.experiments.file.complaints import At, first_complaint
from tropism.experiments.file.grid import expanded
from tropism.experiments.file.guards import parts
from tropism.experiments.file.overrides import merge, nested
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.file.yaml_file import Document, parse, read


class Experiment(ExperimentSpec):
    """One experiment file. `Experiment.load(path)` reads, checks and resolves it; nothing heavy is loaded."""

    @classmethod
    def load(cls, path: str | Path, *, quick: bool = False, overrides: dict[str, Any] | None = None) -> "Experiment":
        """Read an experiment file; `overrides` maps dotted keys to values (`train.learning_rate`).

        Raises `SpecError` naming the file, line and key, the value found and what is allowed.
        """
        return cls.from_document(read(path), quick=quick, overrides=overrides)

    @classmethod
    def from_text(cls, text: str, *, quick: bool = False, overrides: dict[str, Any] | None = None) -> "Experiment":
        """Return the experiment that a YAML text describes."""
        return cls.from_document(parse(text), quick=quick, overrides=overrides)

    @classmethod
    def from_document(
        cls, document: Document, *, quick: bool = False, overrides: dict[str, Any] | None = None
    ) -> "Experiment":
        """Return the experiment of a parsed file; raises `SpecError` as `load`."""
        data = document.data
        if quick:
            data = merge(data, _quick(document))
        for dotted, value in (overrides or {}).items():
            data = merge(data, nested(dotted, value))
        try:
            experiment = cls.model_validate(expanded(data))
            check(experiment)
        except ValidationError as error:
            raise SpecError(first_complaint(error, document, ExperimentSpec)) from None
        except At as error:
            raise SpecError(f"{document.where(error.key)}: {error}") from None
        return experiment

    def _repr_html_(self) -> str:
        rows = [
            (name, " + ".join(part for part, _ in parts(spec.guard)), spec.role or "", spec.note or "")
            for name, spec in self.conditions.items()
        ]
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        said = f"on {self.model}; {seeds}; measures {', '.join(self.measure) or 'nothing'}"
        title = f"{self.name}: {self.question}" if self.question else self.name
        return notebook.table(title, ("condition", "guard", "role", "note"), rows, said)


def _quick(document: Document) -> dict[str, Any]:
    """Return the section `quick:`, which must be there for `--quick` to mean anything."""
    quick = document.data.get("quick")
    if not quick:
        raise SpecError(
            f"{document.name}: --quick applies the section 'quick:', which this file does not have; add one (quick: "
            f"{{seeds: [0]}}), or run without --quick"
        )
    # Anything but a mapping is left for the check of the file's shape, which names its line.
    return quick if isinstance(quick, dict) else {}
