"""What a guard must carry through a checkpoint, and the file it lies in."""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tropism.errors import AttachError

STATE_FILE = "guard_state.safetensors"
"""In a checkpoint's folder: what the attached guards need to go on from there."""


class Stateful(abc.ABC):
    """A part of a guard that must survive a checkpoint (the update constraint's anchor)."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned; raises `AttachError` where it is another guard's."""


def gather(parts: Sequence[Stateful]) -> dict[str, Tensor]:
    """The states of several parts in one mapping, `INDEX/name`."""
    return {f"{i}/{name}": value for i, part in enumerate(parts) for name, value in part.state_dict().items()}


def scatter(parts: Sequence[Stateful], state: Mapping[str, Tensor]) -> None:
    """Give each part its own of what `gather` returned."""
    for i, part in enumerate(parts):
        part.load_state_dict({n.partition("/")[2]: value for n, value in state.items() if n.startswith(f"{i}/")})


def save(parts: Sequence[Stateful], folder: str | Path) -> Path | None:
    """Write `guard_state.safetensors` into a checkpoint's folder; None where no part has a state."""
    if not parts:
        return None
    target = Path(folder) / STATE_FILE
    temporary = target.with_name(target.name + ".partial")
    save_file(gather(parts), temporary)
    temporary.replace(target)
    return target


def load(parts: Sequence[Stateful], folder: str | Path) -> None:
    """Read what `save` wrote; raises `AttachError` where a part needs a state and the folder holds none."""
    source = Path(folder) / STATE_FILE
    if not parts:
        return
    if not source.is_file():
        raise AttachError(
            f"the guard cannot go on from {folder}: it has no {STATE_FILE}, so where the constraint was "
            "anchored is not known; resume from a checkpoint that was made with the guard attached"
        )
    scatter(parts, load_file(source))
