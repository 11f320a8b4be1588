"""A dataset on the hub, loaded by the `datasets` library and read row by row."""

from collections.abc import Iterator
from typing import Any

from tropism.data.sources.formats import BATCH, Read
from tropism.data.sources.source import Examples, Request, Source
from tropism.data.sources.table import Table
from tropism.errors import DataError, HubOutOfReach

BY_PATH = "its file by 'path' (on a command line --path FILE, or --set data.SET.path=FILE)"
"""What can be given in the place of the hub, of a source that has a name of its own."""


def hub_examples(request: Request) -> Examples:
    """Return the examples of a hub dataset's split; the ids of rows without one are name, split and number, from 0."""
    rows = hub_rows(request.source, request.subset, request.split.name)
    name = f"{request.source}/{request.split.name}"
    return dataset_examples(request, rows, name, f"{request.source} {request.split.name}")


def dataset_examples(request: Request, rows: Any, name: str, what: str) -> Examples:
    """Return the examples of a `datasets.Dataset`, which lies on disk and is read in batches."""

    def read(wanted: Iterator[int] | None) -> Iterator[Read]:
        indices = None if wanted is None else list(wanted)
        part = rows if indices is None else rows.select(indices)
        place = 0
        # As Arrow, so that nothing is decoded that no chat has: images, audio.
        for batch in part.with_format("arrow").iter(batch_size=BATCH):
            for row in batch.to_pylist():
                number = place if indices is None else indices[place]
                yield f"{what} row {number}", row
                place += 1

    return Table(request, read, lambda: len(rows), lambda index: f"{name}/{index}")


def hub_rows(
    name: str, subset: str | None, split: str, *, instead: str = "a local file (no file or folder of that name is here)"
) -> Any:
    """Return a hub dataset's split as a `datasets.Dataset`; `instead` is what else could be given, for the message.

    Raises `DataError` where it cannot be had, `HubOutOfReach` where nothing is known of it.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    from tropism.models import hub_token

    try:
        return datasets.load_dataset(name, subset, split=split, token=hub_token())
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = HubOutOfReach if isinstance(error, ConnectionError) else DataError
        raise kind(
            f"dataset {name!r} (subset {subset!r}, split {split!r}) could not be loaded from the hub: {first}; check the "
            f"name and the connection, or give {instead}"
        ) from None


HUB = Source(
    name="a hub dataset",
    about="OWNER/NAME of a dataset on the Hugging Face hub",
    takes=("split", "subset", "columns", "size", "seed"),
    read=hub_examples,
    hub=True,
)
