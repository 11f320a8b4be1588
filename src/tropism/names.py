"""Names and ids that cross floors: they are written into files, batches and tables, and mean the same everywhere."""

from collections.abc import Mapping

VERSION = "0.1.0"
"""The package's version; here, and not in `tropism` itself, because that imports every module."""

BASE = "base"
"""The condition name of the untrained model; it has no seed."""

ROUTE_IDS: Mapping[str, int] = {"unlabelled": 0, "forget": 1, "retain": 2}
"""Route names and the ids that a batch's column `route` carries."""

THINKING_PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Opening and closing marks of thinking, as written by Qwen, DeepSeek, Magistral, Kimi, Seed, EXAONE, Command A and others."""
THINKING_MARKS = tuple(mark for pair in THINKING_PAIRS for mark in pair)

IGNORE = -100
"""The label of a token that is not supervised, as in torch's cross entropy."""


def run_name(condition: str, seed: int | None) -> str:
    """A run's name, which is also its path inside the experiment's folder.

    >>> run_name("caft", 0), run_name("base", None)
    ('caft/seed-0', 'base')
    """
    return condition if seed is None else f"{condition}/seed-{seed}"
