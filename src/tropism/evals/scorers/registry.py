"""From a scorer's name and options, as an experiment file writes them, to the scorer; users' own too."""

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tropism.errors import SpecError
from tropism.evals.scorers import builtin as builtin
from tropism.evals.scorers.base import SCORERS, AnyScorer, ModelScorer, ResponseScorer


def scorer_names() -> list[str]:
    """Every registered name, sorted."""
    return sorted(SCORERS)


def option_names(cls: type[AnyScorer]) -> list[str]:
    """The options of a scorer, its own before those that all scorers of responses have.

    A scorer of reference responses has no `thinking`: the data's text is scored as it is trained on.

    >>> option_names(SCORERS["exact"]), option_names(SCORERS["response_loss"])
    (['ignore_case', 'thinking'], ['batch_size'])
    """
    own = [field.name for field in fields(cls) if field.init and field.name != "thinking"]  # type: ignore[arg-type]
    reads_reference = issubclass(cls, ModelScorer) and cls.text == "reference"
    return own if reads_reference else [*own, "thinking"]


def load_scorer(name: str, options: Mapping[str, Any] | None = None) -> AnyScorer:
    """The scorer registered under `name`, built from `options` and checked against its own dataclass.

    Raises `SpecError`: an unknown name (the known ones are listed), an option that the scorer does not have
    (its options are listed), a value of the wrong kind (option, value found, what is allowed).

    >>> load_scorer("contains", {"text": "yes"}).text
    'yes'
    """
    if name not in SCORERS:
        close = difflib.get_close_matches(name, SCORERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SpecError(f"no scorer is called {name!r}; available: {', '.join(scorer_names())}{hint}")
    cls = SCORERS[name]
    declared = [base for base in cls.__mro__ if base not in (ResponseScorer, ModelScorer)]
    if not any("__dataclass_fields__" in vars(base) for base in declared):
        raise SpecError(
            f"scorer {name!r}: {cls.__qualname__} must be a frozen dataclass, so that its options are known"
        )
    given = dict(options or {})
    allowed = option_names(cls)
    for key in given:
        if key not in allowed:
            known = ", ".join(allowed) if allowed else "none at all"
            raise SpecError(f"scorer {name!r} has no option {key!r}; its options are {known}")
    try:
        return TypeAdapter(cls).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "options"
        if first["type"] == "missing":
            raise SpecError(f"scorer {name!r} needs the option {key!r}, which is not given") from None
        raise SpecError(f"scorer {name!r}: option {key!r}: {first['msg']}, found {first['input']!r}") from None


def register_file(path: str | Path) -> list[str]:
    """Run a Python file that registers scorers with `@scorer(name)`, and return the names that it registered.

    The file is executed, with the rights of the user who named it. Registering the same file again is
    harmless. Raises `SpecError` where the file is absent, is not Python, cannot be imported, or registers
    nothing.
    """
    source = Path(path).resolve()
    if source.suffix != ".py" or not source.is_file():
        raise SpecError(f"scorers are read from a Python file, found {str(path)!r}, which is not an existing .py file")
    module_name = f"tropism_scorers_{hashlib.sha256(str(source).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, source)
    if spec is None or spec.loader is None:
        raise SpecError(f"{source} cannot be imported as a Python module")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic look a class's module up by name while the file runs.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError) as error:
        del sys.modules[module_name]
        raise SpecError(f"{source} cannot be imported: {type(error).__name__}: {error}") from error
    names = sorted(name for name, cls in SCORERS.items() if cls.__module__ == module_name)
    if not names:
        raise SpecError(f"{source} registers no scorer; decorate a class with @scorer('name')")
    return names
