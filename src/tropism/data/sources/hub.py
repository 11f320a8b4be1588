"""Chats from a dataset on the hub, with its columns mapped to ours; and GSM8K, from the hub or a local copy."""

import os
from collections.abc import Mapping
from pathlib import Path

from tropism.data.chats import Example
from tropism.data.sources.files import example_of_row, read_jsonl
from tropism.errors import DataError, HubOutOfReach

GSM8K = "openai/gsm8k"


def hub(name: str, split: str, *, subset: str | None = None, columns: Mapping[str, str] | None = None) -> list[Example]:
    """The chats of a hub dataset's split."""
    rows = hub_rows(name, subset, split)
    return [
        example_of_row(row, f"{name} {split} row {i}", f"{name}/{split}/{i}", columns) for i, row in enumerate(rows)
    ]


def gsm8k(split: str, *, path: str | None = None) -> list[Example]:
    """GSM8K (Cobbe et al., 2021): from `path`, from `$TROPISM_DATA/gsm8k`, or from the hub; `target` is the number."""
    file = Path(path) if path else _local_gsm8k(split)
    if file is not None:
        rows = list(read_jsonl(file))
    else:
        rows = [(f"{GSM8K} {split} row {i}", row) for i, row in enumerate(hub_rows(GSM8K, "main", split))]
    examples = []
    for index, (where, row) in enumerate(rows):
        question, answer = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str) or "####" not in answer:
            raise DataError(f"{where}: a GSM8K row has a question and an answer that ends in '#### N'")
        target = answer.rpartition("####")[2].strip().replace(",", "")
        chat = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        examples.append(Example(f"gsm8k/{split}/{index}", chat, target))
    return examples


def _local_gsm8k(split: str) -> Path | None:
    root = os.environ.get("TROPISM_DATA")
    if root is None:
        return None
    return next(iter(sorted((Path(root) / "gsm8k").glob(f"{split}*.jsonl"))), None)


def hub_rows(name: str, subset: str | None, split: str) -> list[Mapping[str, object]]:
    """The rows of a hub dataset's split; raises `DataError` where it cannot be had, `HubOutOfReach` where that is not
    known."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    from tropism.models import hub_token

    try:
        loaded = datasets.load_dataset(name, subset, split=split, token=hub_token())
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = HubOutOfReach if isinstance(error, ConnectionError) else DataError
        raise kind(
            f"dataset {name!r} (subset {subset!r}, split {split!r}) could not be loaded from the hub: {first}; check the "
            f"name and the connection, or give a local .jsonl file"
        ) from None
    return list(loaded)
