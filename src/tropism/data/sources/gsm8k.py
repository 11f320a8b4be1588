"""GSM8K (Cobbe et al., 2021): grade-school word problems; `target` is the number after `####`."""

import os
from pathlib import Path

from tropism.data.sources import hub
from tropism.data.sources.formats import count_rows, existing, read_rows
from tropism.data.sources.source import Examples, Request, Source
from tropism.data.sources.table import Table

HUB_NAME = "openai/gsm8k"


def gsm8k_examples(request: Request) -> Examples:
    """Return the examples of a split, from `path`, from `$TROPISM_DATA/gsm8k`, or from the hub."""
    split = request.split.name
    file = existing(request.path) if request.path else _local(split)
    if file is None:
        rows = hub.hub_rows(HUB_NAME, "main", split, instead=hub.BY_PATH)
        return hub.dataset_examples(request, rows, f"gsm8k/{split}", f"{HUB_NAME} {split}")
    return Table(
        request,
        lambda wanted: read_rows(file, wanted),
        lambda: count_rows(file),
        lambda index: f"gsm8k/{split}/{index}",
    )


def _local(split: str) -> Path | None:
    root = os.environ.get("TROPISM_DATA")
    if root is None:
        return None
    return next(iter(sorted((Path(root) / "gsm8k").glob(f"{split}*.jsonl"))), None)


GSM8K = Source(
    name="gsm8k",
    about="grade-school word problems with worked answers (Cobbe et al., 2021)",
    takes=("split", "path", "size", "seed"),
    read=gsm8k_examples,
    splits=("train", "test"),
    hub=True,
)
