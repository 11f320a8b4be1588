"""What a finder is: the activations of two sides in, a window at a time; directions at one site out."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from tropism.site import Site

Unit = Literal["chat", "token"]
"""What one row of activations is: a chat's mean over its positions, or one token."""


@dataclass(frozen=True)
class Found:
    """Directions `[k, d_model]` at one site, and what the finder has to say about them (JSON)."""

    vectors: Float[Tensor, "k d"]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """Some rows of both sides at one site, float32 on the CPU; in a paired contrast row i belongs to row i.

    `*_gradients` are `∂(mean response loss)/∂h` at the same rows, for a finder with `needs_gradients`.
    """

    positive: Float[Tensor, "n d"]
    negative: Float[Tensor, "m d"]
    paired: bool
    positive_gradients: Float[Tensor, "n d"] | None = None
    negative_gradients: Float[Tensor, "m d"] | None = None


class Collector(abc.ABC):
    """Gathers windows at one site; what it keeps is all the memory that finding takes."""

    @abc.abstractmethod
    def add(self, window: Window) -> None:
        """Take one window in."""

    @abc.abstractmethod
    def result(self) -> Found:
        """The directions; raises `DirectionsError` where there are none."""


class Finder(abc.ABC):
    """Turns two sets of activations into directions. Subclasses are frozen dataclasses whose fields are the options."""

    name: ClassVar[str]

    @property
    def unit(self) -> Unit:
        """Whether rows are chats or tokens."""
        return "chat"

    @property
    def needs_gradients(self) -> bool:
        """Whether windows must carry gradients (then the whole model runs, forward and backward)."""
        return False

    @property
    def needs_pairs(self) -> bool:
        """Whether it works on pairs alone, so that a contrast of two data sets is of no use to it."""
        return False

    def check_sites(self, sites: tuple[Site, ...]) -> None:  # noqa: B027 - most finders work at any site
        """Raise `DirectionsError` for a site at which this finder can find nothing."""

    def check_rows(self, rows: int) -> None:  # noqa: B027 - most finders take any number
        """Raise `DirectionsError` where so many rows, chats or tokens of the positive side, cannot hold what is asked for."""

    def options(self) -> dict[str, Any]:
        """Name and options, as provenance records them."""
        return {"name": self.name, **{one.name: getattr(self, one.name) for one in fields(self)}}  # type: ignore[arg-type]

    @abc.abstractmethod
    def collector(self, site: Site, width: int, seed: int) -> Collector:
        """A fresh collector for one site."""
