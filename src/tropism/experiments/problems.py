"""One metric or one analysis that cannot be computed ends neither its run nor the others; the reason is kept."""

import errno
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size

from tropism import errors
from tropism.errors import ClaimLost, GuardNotInForce, RunFailed, TropismError
from tropism.results.problem import Problem

SMALLER = (
    "set train.batch_size: auto, or a smaller batch_size with a larger accumulation; checkpointing: true; a shorter "
    "max_length; or take a base model in 4 bits"
)
"""What to set where a fine-tune does not fit."""

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def noted(
    problems: list[Problem], what: Literal["metric", "analysis"], name: str, eval_set: str = "", mode: str = ""
) -> Iterator[None]:
    """Add to `problems` what ends the computing of a metric or an analysis, so that the others go on.

    A guard or an ablation mode that is not in force, and a run that another process took over, are no such problem.
    """
    try:
        yield
    except (ClaimLost, GuardNotInForce):
        raise
    except Exception as error:  # noqa: BLE001 - a scorer may be anybody's code; its reason is shown, and the exit code is 3
        problems.append(Problem(what, name, reason(error), eval_set, mode, again=True))


def reason(error: BaseException) -> str:
    """Return in a sentence why something ended; of an error that nobody foresaw, its kind and where it was raised."""
    if out_of_memory(error):
        return "out of memory; give the scorer a smaller batch_size, or set a smaller generate.batch_size"
    if isinstance(error, TropismError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def as_said(error: BaseException) -> list[str]:
    """Return an error's kind and sentence, for another process."""
    kind = "MemoryError" if out_of_memory(error) else type(error).__name__
    return [kind, str(error) if isinstance(error, TropismError) or kind == "MemoryError" else reason(error)]


def raised_from(said: Sequence[str]) -> Exception:
    """Return what another process said (`as_said`) as an error here; of a kind that is not Tropism's, a `RunFailed`."""
    kind, text = said
    if kind == "MemoryError":
        return MemoryError(text)
    known: type[TropismError] = getattr(errors, kind, RunFailed)
    return known(text)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device (CUDA, MPS, the CPU's allocator) or the host has no memory left."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(words in str(error) for words in _NO_MEMORY)
