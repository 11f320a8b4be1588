"""A step's examples, shared out among the processes of one training so that together they are one process' step.

`B` examples per forward pass on `N` processes are `B/N` on each. Process `r` gets the `r`-th share of what one process would
have taken; where the last batch of an epoch is short, the shares are filled up with copies of its last example of which
nothing is learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@dataclass(frozen=True)
class Filled:
    """An example that fills up a batch: nothing of it is learned."""

    index: int


class Rows(Dataset[dict[str, Any]]):
    """The rows of a training set; the row at `Filled(i)` is row `i` without a supervised token."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: "int | Filled") -> dict[str, Any]:
        if not isinstance(index, Filled):
            return self._rows[index]
        row = self._rows[index.index]
        silent = replace(row["rendered"], response_mask=tuple(False for _ in row["rendered"].response_mask))
        return {**row, "rendered": silent}


class WholeBatches(Sampler[Any]):
    """The order of another sampler, filled up to whole batches of `size`.

    >>> list(WholeBatches([2, 0, 1], 2))
    [2, 0, 1, Filled(index=1)]
    """

    def __init__(self, order: Any, size: int) -> None:
        self._order, self._size = order, size

    def __len__(self) -> int:
        return -(-len(self._order) // self._size) * self._size

    def __iter__(self) -> Iterator[Any]:
        indices = list(self._order)
        yield from indices
        yield from [Filled(indices[-1])] * (len(self) - len(indices))


class SameOrder(TrainerCallback):
    """Gives every process the first one's random state at the beginning of each epoch, from which its order is drawn."""

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size == 1:
            return
        from accelerate.utils import broadcast_object_list

        held = [torch.get_rng_state()]
        broadcast_object_list(held)
        torch.set_rng_state(held[0])
