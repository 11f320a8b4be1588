"""What is read of a model for some directions is kept for the next: their finders and validity reports share the passes."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from tropism.site import Site

T = TypeVar("T")
Kept = WeakKeyDictionary[nn.Module, dict[Hashable, object]]

_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)
_ahead: ContextVar[tuple[Site, ...]] = ContextVar("ahead", default=())


@contextmanager
def read_once() -> Iterator[None]:
    """Inside, the same question to the same model is answered from memory: chats at the same sites, its own answers.

    For several directions of one model, which must stay as it is in here. A model with adapters is asked each time, since
    they are switched on and off. What is kept goes with the block, or with the model.
    """
    token = _kept.set(WeakKeyDictionary())
    try:
        yield
    finally:
        _kept.reset(token)


def once(model: nn.Module, question: Hashable, read: Callable[[], T]) -> T:
    """Return what `read` returns, or what it returned before for this question to this model, inside `read_once`."""
    kept = _kept.get()
    if kept is None or not _keeps(model):
        return read()
    of_model = kept.setdefault(model, {})
    if question not in of_model:
        of_model[question] = read()
    found: T = of_model[question]  # type: ignore[assignment]
    return found


@contextmanager
def also_read_at(sites: Sequence[Site]) -> Iterator[None]:
    """Inside, who reads chats reads them at these sites too, because others will ask for the same chats there."""
    token = _ahead.set(tuple(sites))
    try:
        yield
    finally:
        _ahead.reset(token)


def asked_ahead(model: nn.Module) -> tuple[Site, ...]:
    """Return the sites of `also_read_at`; none where what is read of the model is not kept."""
    return _ahead.get() if _keeps(model) else ()


def _keeps(model: nn.Module) -> bool:
    return _kept.get() is not None and not hasattr(model, "peft_config")
