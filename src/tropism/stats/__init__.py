"""Statistics of an experiment: seeds are the unit, prompts are paired, and too few seeds get no interval.

```text
cells           long table of scores → [seeds, prompts], the mean over samples in each cell
resampling      seed → prompt → sample, all conditions resampled together
estimates       a value and its interval, a paired difference, noninferiority
significance    permutation p-values, Holm, exact intervals for rates, effect sizes
```

Nothing here imports torch, and nothing here touches a global random state.
"""

from tropism.stats.cells import paired, to_cells
from tropism.stats.estimates import (
    Estimate,
    Verdict,
    difference,
    interval,
    interval_within_seeds,
    noninferior,
)
from tropism.stats.resampling import bootstrap
from tropism.stats.significance import Permutation, cohens_h, exact_interval, hedges_g, holm, permutation_test

__all__ = [
    "Estimate",
    "Permutation",
    "Verdict",
    "bootstrap",
    "cohens_h",
    "difference",
    "exact_interval",
    "hedges_g",
    "holm",
    "interval",
    "interval_within_seeds",
    "noninferior",
    "paired",
    "permutation_test",
    "to_cells",
]
