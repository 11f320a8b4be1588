"""Chance that belongs to an example: the same whatever the size or the order of the set that it is in."""

import hashlib


def chance(seed: int, purpose: str, example_id: str) -> float:
    """Return a number in [0, 1), uniform over examples, that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{example_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
