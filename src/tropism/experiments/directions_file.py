"""Directions that an experiment reads from files, with the validity report that lies beside them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.directions import provenance as where_from
from tropism.directions.artifact import Directions
from tropism.directions.components import at_sites
from tropism.directions.foreign import Reading, import_directions
from tropism.directions.foreign_reader import Imported
from tropism.directions.validity import ValidityReport, validity_path
from tropism.errors import DirectionsError
from tropism.experiments.file.spec import DirectionsSpec
from tropism.experiments.progress import Progress
from tropism.site import Site, base_model, select_layers


def read_file(spec: DirectionsSpec, name: str, model: Any, progress: Progress) -> Directions:
    """Read the directions of a file, of Tropism or of another project, for the model that the experiment starts from."""
    imported = import_for(spec, base_model(model).config)
    for note in imported.notes:
        progress.say(f"directions {name}: {note}")
    directions = imported.directions
    if "model" not in directions.provenance:
        directions = directions.with_provenance(model=where_from.of_model(model))
    return directions


def import_for(spec: DirectionsSpec, config: Any) -> Imported:
    """Read the directions of a file for a model of which the configuration is at hand, at the sites that are asked for.

    Raises `DirectionsError` for a file that cannot be read, or does not fit the model; `DirectionsMismatch` for directions
    of another model.
    """
    text = config.get_text_config(decoder=True)
    reading = Reading(**(spec.reading or {}), components=spec.chosen_components)
    imported = import_directions(
        spec.files(), width=text.hidden_size, layers=text.num_hidden_layers, reading=reading, config=config
    )
    directions = imported.directions.check_config(config)
    if spec.sites is not None:
        chosen = [Site(layer) for layer in select_layers(spec.sites, text.num_hidden_layers)]
        directions = at_sites(directions, chosen)
    return replace(imported, directions=directions)


def copy_validity(spec: DirectionsSpec, name: str, target: Path, progress: Progress) -> list[Path]:
    """Keep the validity report that lies beside the file, if it is of all that was read; returns the copy, if there is one.

    Raises `DirectionsError` where the file says `strict` and no report speaks for the directions.
    """
    report = validity_path(spec.files()[0])
    why = None
    if not report.is_file():
        why = "there is none beside the file"
    elif len(spec.files()) > 1 or spec.components is not None or spec.sites is not None:
        why = "it is of all the file's directions, and only some are read"
        progress.say(f"directions {name}: the validity report is not kept: {why}")
    if why is not None:
        if spec.strict:
            raise DirectionsError(
                f"directions {name!r} need a validity report (strict: true), and {why}; validate them first"
            )
        validity_path(target).unlink(missing_ok=True)
        return []
    validity = ValidityReport.load(report)
    if spec.strict and not validity.trusted:
        raise DirectionsError(f"directions {name!r} are refused (strict: true): {validity.summary()}")
    for doubt in validity.doubts():
        progress.say(f"directions {name}: {doubt.text}")
    write_text(validity_path(target), report.read_text(encoding="utf-8"))
    return [validity_path(target)]
