"""Statistics of an experiment: seeds are the unit, prompts are paired, and too few seeds get no interval.

```text
cells           a long table of scores → [seeds, prompts], with the mean over samples in each cell
resampling      the bootstrap, seed → prompt → sample, with all conditions resampled together
estimates       a value with its interval, a paired difference, noninferiority
significance    permutation p-values, Holm, exact intervals for rates, effect sizes
sequential      looks while seeds come in: error spending, and the power of a plan
random_controls p-values against random directions
```

Nothing here imports torch or touches a global random state.
"""

from tropism.stats.cells import paired, to_cells
from tropism.stats.estimates import (
    EXACT,
    Bounds,
    Estimate,
    Verdict,
    bounds_of_sum,
    difference,
    interval,
    interval_within_seeds,
    noninferior,
)
from tropism.stats.resampling import bootstrap
from tropism.stats.sequential import Look, looks, power, smallest_effect
from tropism.stats.significance import Permutation, cohens_h, exact_interval, hedges_g, holm, permutation_test

__all__ = [
    "EXACT",
    "Bounds",
    "Estimate",
    "Look",
    "Permutation",
    "Verdict",
    "bootstrap",
    "bounds_of_sum",
    "cohens_h",
    "difference",
    "exact_interval",
    "hedges_g",
    "holm",
    "interval",
    "interval_within_seeds",
    "looks",
    "noninferior",
    "paired",
    "permutation_test",
    "power",
    "smallest_effect",
    "to_cells",
]
