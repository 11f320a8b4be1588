"""Which guards are on which model.

Guards write it and sit above; directions must be found on a bare model, sit below them, and read it here.
"""

import abc
from weakref import WeakKeyDictionary

from torch import nn

from tropism.site import base_model


class Attached(abc.ABC):
    """A guard that is on a model now."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Its name, for messages."""


_ATTACHED: WeakKeyDictionary[nn.Module, list[Attached]] = WeakKeyDictionary()


def attached(model: nn.Module) -> list[Attached]:
    """Return the guards on `model`, first attached first; the list is live, so whoever attaches appends to it."""
    return _ATTACHED.setdefault(base_model(model), [])
