"""Construct without the test run's type checks, to see what a user without them is told."""

import inspect
from typing import Any


def build(cls: type, *args: Any, **options: Any) -> Any:
    """`cls(*args, **options)` as outside the tests, where beartype does not come first."""
    instance = object.__new__(cls)
    inspect.unwrap(cls.__init__)(instance, *args, **options)
    return instance


def call(function: Any, *args: Any, **options: Any) -> Any:
    """`function(*args, **options)` as outside the tests."""
    return inspect.unwrap(function)(*args, **options)
