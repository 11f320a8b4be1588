"""The effect at equal loss, two ways: within bins of loss, and by analysis of covariance.

A prompt that makes the response likelier lowers the loss, and with it every gradient. What remains at equal loss is
what the prompt does to the gradient's direction.
"""

import math
import warnings

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from scipy import stats as scipy_stats

COLUMNS = ["contrast", "method", "n", "value", "low", "high", "p", "overlap"]

FEWEST_IN_BIN = 5
"""A bin of loss counts where each condition has at least this many chats in it."""


def by_bins(table: pd.DataFrame, treated: str, baseline: str, bins: int = 8) -> pd.DataFrame:
    """Average the difference within bins of loss, weighted by the smaller side's count; one row.

    Bins are quantiles of both conditions' losses together. `overlap` is the share of chats in bins that hold enough of
    both; where it is 0 nothing can be matched, and value and interval are missing. Chats count as independent, so the
    interval is wider than a paired one.
    """
    two = table[table["condition"].isin([treated, baseline])]
    # Equal losses give equal quantiles; bins of no width are merged.
    edges = np.unique(np.quantile(two["loss"], np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, two["loss"], side="right") - 1, 0, max(len(edges) - 2, 0))
    value = weight_sum = variance = used = 0.0
    for chosen in np.unique(place):
        part = two[place == chosen]
        a, b = (part.loc[part["condition"] == name, "pressure"].to_numpy(dtype=float) for name in (treated, baseline))
        if min(len(a), len(b)) < FEWEST_IN_BIN:
            continue
        weight = float(min(len(a), len(b)))
        value += weight * float(a.mean() - b.mean())
        variance += weight**2 * float(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
        weight_sum += weight
        used += len(part)
    contrast = f"{treated} − {baseline}"
    if not weight_sum:
        return pd.DataFrame([(contrast, "bins", 0, math.nan, math.nan, math.nan, math.nan, 0.0)], columns=COLUMNS)
    value, error = value / weight_sum, math.sqrt(variance) / weight_sum
    reach = float(scipy_stats.norm.ppf(0.975)) * error
    p = 2 * float(scipy_stats.norm.sf(abs(value) / error)) if error > 0 else math.nan
    row = (contrast, "bins", int(used), value, value - reach, value + reach, p, used / len(two))
    return pd.DataFrame([row], columns=COLUMNS)


def by_ancova(table: pd.DataFrame, treated: str, baseline: str) -> pd.DataFrame:
    """Estimate the condition's coefficient in `pressure ~ condition + loss + log‖g‖`, errors clustered by chat; one row.

    `overlap` is the share of chats whose loss lies within the range that both conditions reach: below 1 the regression
    extrapolates for the rest.
    """
    two = table[table["condition"].isin([treated, baseline]) & (table["gradient_norm"] > 0)].copy()
    two["treated"] = (two["condition"] == treated).astype(float)
    two["log_norm"] = np.log(two["gradient_norm"])
    # The same chat is in both conditions, so its two errors go together.
    groups = pd.factorize(two["chat"])[0]
    with warnings.catch_warnings():
        # A covariate that does not vary is legitimate; the pseudo-inverse leaves the condition's coefficient intact.
        warnings.simplefilter("ignore")
        fit = smf.ols("pressure ~ treated + loss + log_norm", two).fit(
            cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
        )
    low, high = fit.conf_int(0.05).loc["treated"]
    ranges = two.groupby("condition")["loss"].agg(["min", "max"])
    inside = two["loss"].between(ranges["min"].max(), ranges["max"].min())
    row = (
        f"{treated} − {baseline}", "ancova", len(two), float(fit.params["treated"]), float(low), float(high),
        float(fit.pvalues["treated"]), float(inside.mean()),
    )  # fmt: skip
    return pd.DataFrame([row], columns=COLUMNS)
