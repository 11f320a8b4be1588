"""A missing optional dependency becomes one sentence that names the extra to install."""

import importlib
from types import ModuleType

from tropism.errors import MissingExtra


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise `MissingExtra` naming the `extra` that brings it.

    >>> require("json", extra="sae", purpose="reading SAEs").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise MissingExtra(
            f"{purpose} needs the package '{module}', which is not installed; "
            f"install it with: pip install 'tropism[{extra}]'"
        ) from None
