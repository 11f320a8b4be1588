"""Chats of unequal lengths, and gradient caches made by hand, for the tests of pressure."""

from types import MappingProxyType

import torch

from tropism.probes.gradient_cache import GradientCache

WORDS = (
    "no",
    "yes it is",
    "forty two and a bit",
    "x",
    "the answer is long enough to matter here",
    "ok ok",
    "seven",
    "why not",
)


def chats(count: int = 8) -> list[list[dict[str, str]]]:
    return [
        [
            {"role": "user", "content": f"{'please ' * (i % 3)}question {i}"},
            {"role": "assistant", "content": WORDS[i % 8]},
        ]
        for i in range(count)
    ]


def cache(gradients: dict) -> GradientCache:
    """A cache that holds these gradients, `{site: [N, d]}`, one row a chat."""
    n, d = next(iter(gradients.values())).shape
    manifest = {"per_token": False, "width": d, "base": {"name": "", "config_hash": ""}}
    rows = torch.arange(n)
    return GradientCache(
        MappingProxyType(gradients),
        torch.ones(n),
        tuple(range(n)),
        rows,
        rows,
        rows,
        torch.full((n,), -1),
        manifest,
    )
