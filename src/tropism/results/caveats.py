"""What a reader must know before believing the table: said by rule, from the folder."""

from collections.abc import Iterator

import pandas as pd

from tropism.results.folder import RunFolder
from tropism.results.roles import guards_of
from tropism.results.summary import baseline_name
from tropism.results.text import count, visible, words

MUCH_UNSCORED = 0.05
"""From this share on, unscored responses may carry the result."""


def caveats(folder: RunFolder, summary: pd.DataFrame) -> list[str]:
    """One sentence each; none where there is nothing to say."""
    return [visible(text) for text in _caveats(folder, summary)]


def _caveats(folder: RunFolder, summary: pd.DataFrame) -> Iterator[str]:
    for run in folder.runs:
        named = run.condition if run.seed is None else f"{words(run.condition)}, seed {run.seed}"
        if run.state == "failed":
            yield f"Failed and not averaged: {named}: {run.error}."
    unfinished = [run for run in folder.runs if run.state == "unfinished"]
    if unfinished:
        some = ", ".join(f"{words(run.condition)}/{run.seed}" for run in unfinished[:6])
        yield (
            f"{count(len(unfinished), 'run')} of {len(folder.runs)} did not finish and count for nothing: "
            f"{some}" + (" …" if len(unfinished) > 6 else ".")
        )
    seeds = len(folder.experiment.get("seeds") or [])
    if seeds < 3:
        yield (
            f"{count(seeds, 'seed')}: no interval over seeds is possible; intervals shown are over prompts, "
            f"within these runs."
        )
    elif seeds < 5:
        yield (
            f"{seeds} seeds: intervals rest on {seeds - 1} degrees of freedom where seeds dominate, so they "
            f"are wide, and a "
            f"permutation test cannot give a p-value under {2 / 2**seeds:.2g}. Five or more seeds say much "
            f"more."
        )
    if not summary.empty:
        yield from _table_caveats(folder, summary)
    if folder.unusable:
        yield (
            f"{count(folder.unusable, 'measurement')} in results.csv had no finite value and "
            f"{'is' if folder.unusable == 1 else 'are'} left out."
        )
    note = str((folder.environment.get("model") or {}).get("note") or "")
    if note:
        yield f"Model: {note.rstrip('.')}."
    if any(guards_of(folder.experiment, condition) for condition in folder.experiment.get("conditions") or {}):
        yield "Guards act in training only: every response here was generated and scored with all guards off."


def _table_caveats(folder: RunFolder, summary: pd.DataFrame) -> Iterator[str]:
    if baseline_name(folder.experiment) not in set(summary["condition"]):
        yield (
            f"The baseline ({words(baseline_name(folder.experiment))}) has no finished run: no difference can be shown."
        )
    fewer = summary[(summary["seeds"] > 0) & (summary["seeds"] < summary["seeds"].max())]
    if not fewer.empty:
        yield (f"Fewer seeds than the others: {', '.join(words(name) for name in dict.fromkeys(fewer['arm']))}.")
    asked = summary["n"].where(summary["n"] > 0)
    for row in summary[summary["unscored"] / asked >= MUCH_UNSCORED].to_dict("records"):
        share = row["unscored"] / row["n"]
        yield (
            f"Unscored: {row['unscored']} of {row['n']} responses ({share:.0%}) of {words(row['arm'])} on "
            f"{words(row['metric'])}, "
            f"{words(row['eval_set'])}; they count for nothing, not for 0."
        )
    by_seed = sorted({words(name) for name in summary.loc[summary["over"] == "seeds", "metric"]})
    if by_seed:
        yield f"Over seeds alone, since no score of a single response reproduces it: {', '.join(by_seed)}."
