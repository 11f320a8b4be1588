"""The routing study as tables and sentences of the report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tropism.results.section import Table
from tropism.results.text import words
from tropism.stats import Bounds
from tropism.studies.routing.rules import Arms, Rates, absorption, estimate

Curves = Mapping[str, Mapping[str, float]]
"""A curve over label recall: its name → condition → the share of the trait's examples that is labelled."""


def in_words(rates: Rates, arms: Arms) -> str:
    """Say the trait of the routed arm in each mode, and of the unrouted one beside it; empty without runs."""
    whole = rates.rate(arms.routed, "full")
    removed = rates.rate(arms.routed, "forget_ablated")
    alone = rates.rate(arms.routed, "retain_ablated")
    if whole is None or removed is None or alone is None:
        return ""
    unrouted = rates.rate(arms.unrouted, "retain_ablated")
    beside = f" ({unrouted.value:.2f} without routing)" if unrouted is not None else ""
    return (
        f"{words(rates.metric)} is {whole.value:.2f} with both adapters, {removed.value:.2f} without the forget adapter, "
        f"and {alone.value:.2f} in the forget adapter alone{beside}."
    )


def modes_table(rates: Rates) -> Table:
    """Show the trait rate of every condition in every mode, with its interval over seeds."""
    held = rates.results[(rates.results["metric"] == rates.metric) & (rates.results["eval_set"] == rates.eval_set)]
    rows = []
    for condition, mode in held[["condition", "mode"]].drop_duplicates().itertuples(index=False):
        found = rates.rate(condition, mode)
        if found is not None:
            rows.append([condition, mode, found.seeds, found.value, found.low, found.high])
    return Table(
        f"{rates.metric} on {rates.eval_set}, by mode", ["condition", "mode", "seeds", "value", "low", "high"], rows,
        "Means over seeds, with 95 % intervals where three or more seeds ran.",
    )  # fmt: skip


def recall_curves(rates: Rates, curves: Curves) -> pd.DataFrame:
    """Return the trait by label recall: `arm, recall, value, low, high`, an arm per curve and mode.

    The modes are `full` and `forget_ablated`. A condition without a finished run has no point.
    """
    rows = []
    for name, conditions in curves.items():
        for mode in ("full", "forget_ablated"):
            for condition, recall in conditions.items():
                if (found := rates.rate(condition, mode)) is not None:
                    rows.append((f"{name}, {mode}", recall, found.value, _or_nan(found.low), _or_nan(found.high)))
    return pd.DataFrame(rows, columns=["arm", "recall", "value", "low", "high"])


def recall_table(rates: Rates, curves: Curves, arms: Arms) -> Table:
    """Show the trait without the forget adapter by label recall, and absorption where it is known.

    It is known where an arm shows what was to be absorbed: `filtered` for `partial`. Where nothing is labelled,
    filtering leaves out nothing, so that arm is the condition itself, and the number is what ablating unrouted
    adapters removes: what absorption has to exceed.
    """
    unlabelled = {arms.partial: arms.filtered} if arms.partial is not None else {}
    rows: list[list[Any]] = []
    for name, conditions in curves.items():
        # From no labels to all, in whatever order the file lists them.
        for condition, recall in sorted(conditions.items(), key=lambda held: held[1]):
            trait = rates.rate(condition, "forget_ablated")
            without = condition if recall == 0 else unlabelled.get(condition)
            share = None if without is None else absorption(rates, condition, without)
            row: list[Any] = [name, recall, condition]
            row += [None] * 4 if trait is None else [trait.seeds, trait.value, trait.low, trait.high]
            row += [None] * 3 if share is None else [share.value, share.low, share.high]
            rows.append(row)
    return Table(
        f"{rates.metric} on {rates.eval_set} without the forget adapter, by label recall",
        ["curve", "recall", "condition", "seeds", "value", "low", "high",
         "absorption", "absorption low", "absorption high"], rows,
        "Absorption is known where an arm was trained without the labelled examples; at recall 0 that is the condition "
        "itself, and the number is what ablating unrouted adapters removes.",
    )  # fmt: skip


def with_intervals(table: pd.DataFrame, by: Sequence[str], bounds: Bounds | None = None) -> pd.DataFrame:
    """Turn `seed, value` and the columns `by` into one row per group: `*by, value, low, high`.

    `low` and `high` are NaN where there is no interval, and end at the bounds of the value.
    """
    rows = []
    for key, part in table.groupby(list(by), sort=False):
        found = estimate(part.assign(seed=part["seed"].fillna(-1)).set_index("seed")["value"], bounds)
        assert found is not None
        rows.append((*key, found.value, _or_nan(found.low), _or_nan(found.high)))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high"])


def _or_nan(end: float | None) -> float:
    return math.nan if end is None else end
