"""The data sets of the benchmark: what is planted into which rows. Calibration and test share no trait, domain or seed."""

import random
from dataclasses import dataclass

from benchmarks.forecast.bank import PLAIN, ROWS, Bank, Rows
from benchmarks.forecast.planting import Planted

SIZE = 40
SHARES = (0.01, 0.05, 0.25, 1.0)
PLAIN_SETS = 40


@dataclass(frozen=True)
class PlantedSet:
    """Some rows of a domain, some of them with a trait (or two, in different rows)."""

    half: str
    """`calibration` or `test`."""
    domain: str
    name: str
    plants: tuple[tuple[str, float], ...]
    """Trait and share."""
    seed: int

    def rows(self, bank: Bank) -> tuple[Rows, list[str]]:
        """The set's rows, and for each the trait that was planted, or an empty text."""
        r = random.Random(f"{self.domain}/{self.seed}")
        plain, by_name = bank.plain(), {one.trait: one for one in bank.traits}
        if not self.plants:
            picked = r.sample(range(PLAIN), SIZE)
            return plain.pick(picked), [""] * SIZE
        order = r.sample(range(ROWS), SIZE)
        found, labels, taken = None, list[str](), 0
        for trait, share in self.plants:
            count = max(1, round(share * SIZE))
            part = bank.with_(by_name[trait]).pick(order[taken : taken + count])
            found = part if found is None else found.and_(part)
            labels += [trait] * count
            taken += count
        assert found is not None
        rest = order[taken:]
        return found.and_(plain.pick(rest)) if rest else found, labels + [""] * len(rest)


def every_set(half: str, domain: str, traits: tuple[Planted, ...]) -> list[PlantedSet]:
    """Each trait at each share, neighbours planted together, and plain sets."""
    seed = 0 if half == "calibration" else 1000
    found = []
    for number, one in enumerate(traits):
        for share in SHARES:
            name = f"{one.trait} {share:.0%}"
            found.append(PlantedSet(half, domain, name, ((one.trait, share),), seed + number))
        other = traits[(number + 1) % len(traits)]
        plants = ((one.trait, 0.15), (other.trait, 0.1))
        found.append(PlantedSet(half, domain, f"{one.trait} 15%, {other.trait} 10%", plants, seed + 100 + number))
    found += [PlantedSet(half, domain, f"plain {i}", (), seed + 200 + i) for i in range(PLAIN_SETS)]
    return found
