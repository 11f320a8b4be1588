"""Real data that cannot ship with the package: tests that need it skip, saying so, where it is absent."""

import os
from pathlib import Path

import pytest


def path(name: str) -> Path:
    """A sample file, from `$TROPISM_DATA` or `shared/data` beside the checkout."""
    roots = [Path(os.environ["TROPISM_DATA"])] if "TROPISM_DATA" in os.environ else []
    roots.append(Path(__file__).parents[2] / "shared" / "data")
    for root in roots:
        if (root / name).exists():
            return root / name
    pytest.skip(f"the sample data {name} is not here; set TROPISM_DATA to the folder that holds it")
