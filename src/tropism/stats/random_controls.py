"""Random directions as controls: p-values from their table alone, with no model and no gradients."""

from typing import Literal

import pandas as pd

from tropism.errors import UsageError


def random_p_values(
    table: pd.DataFrame, column: str = "pressure", alternative: Literal["two-sided", "less"] = "two-sided"
) -> pd.DataFrame:
    """Return `p = (1 + b)/(1 + K)` by site and kind: of `K` random directions, `b` come out at least as extreme.

    `table` has the columns `site, kind, draw` and `column`; `draw` is -1 for the direction itself. Extreme means as
    far from zero, or with `alternative="less"` as low. The result has the columns `site, kind, draws, value,
    random_mean, random_sd, p`. Raises `UsageError` where the direction itself or the random ones are missing.
    """
    rows = []
    for (site, kind), part in table.groupby(["site", "kind"], sort=False, observed=True):
        own = part.loc[part["draw"] == -1, column]
        null = part.loc[part["draw"] >= 0, column].to_numpy(dtype=float)
        if len(own) != 1 or len(null) == 0:
            raise UsageError(
                f"random_p_values: needs one row with draw -1 and at least one random draw for {site}, {kind}, found "
                f"{len(own)} and {len(null)}"
            )
        value = float(own.iloc[0])
        # A drop is asked for where the claim is a drop; elsewhere either sign would have been a finding.
        beyond = int((null <= value).sum() if alternative == "less" else (abs(null) >= abs(value)).sum())
        spread = float(null.std(ddof=1)) if len(null) > 1 else float("nan")
        rows.append((site, kind, len(null), value, float(null.mean()), spread, (1 + beyond) / (1 + len(null))))
    return pd.DataFrame(rows, columns=["site", "kind", "draws", "value", "random_mean", "random_sd", "p"])


def control_difference(table: pd.DataFrame, treated: str, baseline: str) -> pd.DataFrame:
    """Return the difference of two conditions along every direction: `site, kind, draw, pressure`.

    Both must have met the same draws (`random_pressure` with one seed). Raises `UsageError` otherwise.
    """
    keys = ["site", "kind", "draw"]
    sides = [table[table["condition"] == name].set_index(keys)["pressure"] for name in (treated, baseline)]
    for name, side in zip((treated, baseline), sides, strict=True):
        if side.empty:
            raise UsageError(f"random controls: has no condition {name!r}; measure it with the same seed as the others")
    # Only along one and the same random direction is the difference of two conditions a draw of the null.
    if not sides[0].index.sort_values().equals(sides[1].index.sort_values()):
        raise UsageError(
            f"random controls: {treated!r} and {baseline!r} have different sites, kinds or draws; measure both with "
            "one count and one seed"
        )
    return (sides[0] - sides[1]).reset_index()
