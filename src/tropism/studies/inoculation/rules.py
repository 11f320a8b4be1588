"""Does an inoculation prompt turn gradients away from a trait, or only lower the loss? A verdict by rule, from tables.

The rule, in the order in which it is asked (`i` inoculation, `n` neutral, `p` placebo; pressure at the chosen site,
on the half of the chats that did not choose it; intervals are 95 % intervals of paired differences):

1. With fewer than three seeds shared by `i` and `n`, drift has no interval: **undecided**.
2. Pressure of `i` is below `n` and below `p`, both intervals below 0, and at most 5 % of random directions drop as
   much: else **not supported**.
3. At equal loss (ANCOVA) the drop `i − n` still has its interval below 0. If not: **loss-mediated** where the
   estimate has lost more than half of the drop, **not supported** where it is only too imprecise to tell.
4. Drift of `i` is below `n`, its interval over seeds below 0: else **different mechanism**.
5. Over all runs, lower pressure goes with smaller drift (Pearson's r > 0): **supported**; else **not supported**.

The placebo is asked before the loss, so that a study whose placebo moves pressure as much as the inoculation is never
called anything but not supported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tropism.errors import UsageError
from tropism.results.rules import NOT_SUPPORTED, SUPPORTED, UNDECIDED
from tropism.stats import Bounds, Estimate
from tropism.stats.estimates import FEWEST_SEEDS
from tropism.stats.random_controls import control_difference, random_p_values
from tropism.studies.inoculation.drift import check_runs, correlation, drift_difference
from tropism.studies.inoculation.loss_matching import by_ancova, by_bins
from tropism.studies.inoculation.tables import (
    REPORT,
    SELECT,
    check_pressures,
    halves,
    paired_differences,
    reporting_half,
    select_site,
    site_means,
)

LOSS_MEDIATED, DIFFERENT_MECHANISM = "loss-mediated", "different mechanism"

MEANS = {
    SUPPORTED: "the prompt turns gradients away from the trait, and less of it is learned",
    LOSS_MEDIATED: "the prompt lowers the loss, and that is what moves the gradients",
    DIFFERENT_MECHANISM: "the prompt turns gradients away from the trait, but it is not shown that less is learned for it",
    NOT_SUPPORTED: "it is not shown that the prompt turns gradients away from the trait and less is learned for it",
    UNDECIDED: "there are too few seeds to say",
}
"""Each outcome in plain words."""

LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """What the rule says, in one sentence with its numbers, and every number that it rests on."""

    outcome: str
    because: str
    numbers: Mapping[str, Any]

    @property
    def sentence(self) -> str:
        """The reason as a sentence of its own."""
        return f"{self.because[:1].upper()}{self.because[1:]}."


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything a study found; `differences`, `matched` and `controls` are of the reporting half, `selection` of the other."""

    site: str
    conditions: tuple[str, str, str]
    """Names of the neutral, the inoculation and the placebo condition."""
    means: pd.DataFrame
    selection: pd.DataFrame
    differences: pd.DataFrame
    controls: pd.DataFrame
    matched: pd.DataFrame
    drift: pd.DataFrame
    correlations: pd.DataFrame
    runs: pd.DataFrame
    verdict: Verdict
    caveats: tuple[str, ...]


def analyse(
    pressures: pd.DataFrame,
    random: pd.DataFrame,
    runs: pd.DataFrame,
    *,
    neutral: str = "neutral",
    inoculation: str = "inoculation",
    placebo: str = "placebo",
    site: str | None = None,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Findings:
    """Return every table of the study and its verdict.

    Args:
        pressures: `tp.pressure`'s columns and `condition`; the same chats in each condition.
        random: `random_pressure`'s columns (with `groups=halves(cache.chats, seed)`) and `condition`.
        runs: one row per run: `condition, seed, drift` (the trait's rate after minus before training); optionally
            `pressure` (the run's own mean; by default its condition's) and `projection_shift`.
        site: report at this site, chosen beforehand; by default the one that the selecting half chooses.
        seed: of the split.
        bounds: the least and the largest value of the trait's metric, (0, 1) for a rate.

    Raises:
        UsageError, DataError: a column, a condition, a chat or a control is missing.
    """
    conditions = (neutral, inoculation, placebo)
    check_pressures(pressures, conditions)
    check_runs(runs)
    pressures = pressures.assign(half=halves(list(pressures["chat"]), seed))
    select, report = (pressures[pressures["half"] == half] for half in (SELECT, REPORT))
    selection = paired_differences(select, inoculation, neutral)
    chosen = site if site is not None else select_site(selection)
    if chosen not in set(pressures["site"]):
        raise UsageError(
            f"analyse: site {chosen!r} is not in the table; it has: {', '.join(sorted(set(pressures['site'])))}"
        )
    pairs = [(inoculation, neutral), (inoculation, placebo), (placebo, neutral)]
    differences = pd.concat([paired_differences(report, *pair) for pair in pairs], ignore_index=True)
    controls = _controls(random, chosen, pairs)
    at_site = report[report["site"] == chosen]
    matchings = []
    for pair in pairs:
        matchings += [by_ancova(at_site, *pair), by_bins(at_site, *pair)]
    matched = pd.concat(matchings, ignore_index=True)
    runs = _with_pressure(runs, at_site)
    # A projection has no bounds, and a study without shifts has only the drift.
    metrics = {"drift": bounds} | ({"projection_shift": None} if "projection_shift" in runs.columns else {})
    drifts = []
    for name, limits in metrics.items():
        for treated, baseline in pairs:
            drifts.append(drift_difference(runs, treated, baseline, name, limits))
    drift = pd.concat(drifts, ignore_index=True)
    correlations = pd.concat([correlation(runs, name) for name in metrics], ignore_index=True)
    means = site_means(report)
    return Findings(
        site=chosen,
        conditions=conditions,
        means=means,
        selection=selection,
        differences=differences,
        controls=controls,
        matched=matched,
        drift=drift,
        correlations=correlations,
        runs=runs,
        verdict=_verdict(chosen, conditions, differences, controls, matched, drift, correlations),
        caveats=_caveats(chosen, conditions, means, matched, runs, correlations, fixed=site is not None),
    )


def _controls(random: pd.DataFrame, site: str, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    there = reporting_half(random[random["site"] == site])
    if there.empty:
        raise UsageError(f"random controls: have no rows at {site} on the reporting half; measure them at every site")
    tables = []
    for treated, baseline in pairs:
        found = random_p_values(control_difference(there, treated, baseline), alternative="less")
        tables.append(found.assign(contrast=f"{treated} − {baseline}"))
    return pd.concat(tables, ignore_index=True)


def _with_pressure(runs: pd.DataFrame, at_site: pd.DataFrame) -> pd.DataFrame:
    """Give each run its condition's mean pressure, unless runs have their own."""
    if "pressure" in runs.columns:
        return runs
    means = at_site.groupby("condition")["pressure"].mean()
    unknown = sorted(set(runs["condition"]) - set(means.index))
    if unknown:
        raise UsageError(f"runs: condition {unknown[0]!r} has no pressure; measure it, or leave its runs out")
    return runs.assign(pressure=runs["condition"].map(means).astype(float))


@dataclass(frozen=True)
class _Step:
    """One question of the rule; the study ends here unless it holds."""

    holds: bool
    otherwise: str
    because: str


def _verdict(
    site: str,
    conditions: tuple[str, str, str],
    differences: pd.DataFrame,
    controls: pd.DataFrame,
    matched: pd.DataFrame,
    drift: pd.DataFrame,
    correlations: pd.DataFrame,
) -> Verdict:
    neutral, inoculation, placebo = conditions
    to_neutral, to_placebo = f"{inoculation} − {neutral}", f"{inoculation} − {placebo}"
    raw_row = _row(differences, site=site, contrast=to_neutral)
    drift_row = _row(drift, contrast=to_neutral, metric="drift")
    raw, drifted = _estimate(raw_row), _estimate(drift_row)
    beside_placebo = _estimate(_row(differences, site=site, contrast=to_placebo))
    of_placebo = _estimate(_row(differences, site=site, contrast=f"{placebo} − {neutral}"))
    equal_loss = _estimate(_row(matched, contrast=to_neutral, method="ancova"))
    # The larger of the p-values over kinds of random directions: the drop must beat each.
    random_p = float(controls.loc[controls["contrast"] == to_neutral, "p"].max())
    r = float(_row(correlations, metric="drift", method="pearson").r)
    seeds = int(drift_row.seeds)

    drop = (
        f"at {site} pressure moved by {_said(raw)} against {neutral} and by {_said(beside_placebo)} against {placebo}"
    )
    held = f"{drop}, at equal loss by {_said(equal_loss)}, and random directions do not (p = {random_p:.3f})"
    # At equal loss the drop may be gone, or only too uncertain to be seen.
    vanished = abs(equal_loss.value) < abs(raw.value) / 2 or equal_loss.value > 0
    if vanished:
        gone = _Step(
            equal_loss.lies_below(0), LOSS_MEDIATED,
            f"{drop}, but at equal loss by {_said(equal_loss)}: the difference vanishes",
        )  # fmt: skip
    else:
        gone = _Step(
            equal_loss.lies_below(0), NOT_SUPPORTED,
            f"{drop}, and at equal loss by {_said(equal_loss)}: too imprecise to exclude the loss",
        )  # fmt: skip
    steps = [
        _Step(
            seeds >= FEWEST_SEEDS, UNDECIDED,
            f"the verdict cannot be given: drift needs an interval over seeds, that needs {FEWEST_SEEDS} seeds "
            f"shared by {inoculation} and {neutral}, and there are {seeds} ({drop})",
        ),
        _Step(raw.lies_below(0), NOT_SUPPORTED, f"{drop}: it is not below {neutral}"),
        _Step(
            beside_placebo.lies_below(0), NOT_SUPPORTED,
            f"{drop}: {placebo} itself moves it by {_said(of_placebo)}, so the trait's name is not what does",
        ),
        _Step(
            random_p <= LEVEL, NOT_SUPPORTED, f"{drop}, but random directions drop as much (p = {random_p:.3f})"
        ),
        gone,
        _Step(
            drifted.lies_below(0), DIFFERENT_MECHANISM,
            f"{held}; but drift moved by {_said(drifted)}: it does not fall with the pressure",
        ),
        _Step(
            r > 0, NOT_SUPPORTED,
            f"{held}; drift moved by {_said(drifted)}, but over runs it does not go with pressure (r = {r:.2f})",
        ),
    ]  # fmt: skip
    numbers = {
        "site": site, "seeds": seeds, "chats": int(raw_row.n),
        "pressure_vs_neutral": _numbers(raw), "pressure_vs_placebo": _numbers(beside_placebo), "random_p": random_p,
        "pressure_vs_neutral_at_equal_loss": _numbers(equal_loss), "drift_vs_neutral": _numbers(drifted),
        "pressure_drift_r": None if math.isnan(r) else r,
    }  # fmt: skip
    for step in steps:
        if not step.holds:
            return Verdict(step.otherwise, step.because, numbers)
    because = f"{held}; drift moved by {_said(drifted)} and goes with pressure over runs (r = {r:.2f})"
    return Verdict(SUPPORTED, because, numbers)


def _caveats(
    site: str,
    conditions: tuple[str, str, str],
    means: pd.DataFrame,
    matched: pd.DataFrame,
    runs: pd.DataFrame,
    correlations: pd.DataFrame,
    fixed: bool,
) -> tuple[str, ...]:
    neutral, inoculation, placebo = conditions
    notes = [
        f"The site {site} was {'fixed beforehand' if fixed else 'chosen on one half of the chats'}; all numbers are "
        f"of the {'reporting half' if not fixed else 'half kept for reporting'}.",
        "Pressure is first-order and local to the activations: it ignores how parameters couple tokens and chats.",
    ]
    loss = means[(means["site"] == site) & (means["metric"] == "loss")].set_index("condition")["value"]
    gap, room = abs(loss[placebo] - loss[inoculation]), abs(loss[neutral] - loss[inoculation])
    # A placebo that makes up three quarters of the distance in loss is called matched.
    matched_well = gap <= room / 4
    notes.append(
        f"Mean loss: {neutral} {loss[neutral]:.3f}, {inoculation} {loss[inoculation]:.3f}, {placebo} "
        f"{loss[placebo]:.3f}: the placebo is {'matched' if matched_well else 'not matched'} in loss (its gap to "
        f"{inoculation} is {gap:.3f}, that of {neutral} {room:.3f})."
    )
    overlap = float(_row(matched, contrast=f"{inoculation} − {neutral}", method="ancova").overlap)
    if overlap < 0.9:
        notes.append(
            f"Only {overlap:.0%} of the losses lie where both conditions reach: the comparison at equal loss "
            "extrapolates."
        )
    if runs.groupby("condition")["pressure"].nunique().max() == 1:
        notes.append(
            "Pressure was measured once per condition, so its correlation with drift has "
            f"{runs['condition'].nunique()} independent points, not {len(runs)}; its interval is too narrow."
        )
    if correlations["r"].isna().any():
        notes.append("Where a correlation is missing there were fewer than 4 runs, or nothing varied.")
    return tuple(notes)


def _row(table: pd.DataFrame, **where: str) -> Any:
    chosen = table
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    return next(chosen.itertuples())


def _estimate(row: Any) -> Estimate:
    """A row with `value`, `low` and `high` as an estimate; what the rule does not ask for is left empty."""
    low, high = (None if pd.isna(end) else float(end) for end in (row.low, row.high))
    return Estimate(float(row.value), low, high, "", "", None, 0, 0)


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    """Without NaN, which JSON does not have: a drift is unknown where no seed is shared."""
    found = {}
    for name, number in estimate.as_dict().items():
        found[name] = None if number is None or math.isnan(number) else number
    return found


def _said(estimate: Estimate) -> str:
    """Three significant digits, because the scale of a pressure is the model's own."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g} (no interval)"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
