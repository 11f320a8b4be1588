"""What a reader must know before believing the table: said by rule, from the folder."""

from collections.abc import Iterator

import pandas as pd

from tropism.names import BASE
from tropism.results.arms import is_trained, kind_of
from tropism.results.folder import ExperimentFolder, Run
from tropism.results.roles import Role, assumed, guards_of
from tropism.results.summary import baseline_name
from tropism.results.text import count, listed, visible, words
from tropism.stats.estimates import FEWEST_SEEDS

MUCH_UNSCORED = 0.05
"""From this share on, unscored responses may carry the result."""
MUCH_CUT = 0.05
"""From this share of a run's answers on, it is said that they were cut off."""
MANY_SEEDS = 5
"""From this number of seeds on, an interval is not called wide for want of seeds."""
MOST_NAMED = 6


def caveats(folder: ExperimentFolder, summary: pd.DataFrame) -> list[str]:
    """Return one sentence per caveat; none where there is nothing to say."""
    return [visible(text) for text in _caveats(folder, summary)]


def _caveats(folder: ExperimentFolder, summary: pd.DataFrame) -> Iterator[str]:
    yield from _about_runs(folder)
    yield from _about_problems(folder)
    if folder.sequential is not None:
        yield folder.sequential.said(len(folder.experiment.get("seeds") or []))
    yield from _about_seeds(summary)
    yield from _about_untrained(folder, summary)
    if not summary.empty:
        yield from _about_the_table(folder, summary)
        yield from _about_roles(folder, summary)
    # What was not scored is named above, with its reason.
    unusable = folder.unusable - sum(one.what == "metric" for run in folder.finished for one in run.problems)
    if unusable > 0:
        verb = "is" if unusable == 1 else "are"
        yield f"{count(unusable, 'measurement')} in results.csv had no finite value and {verb} left out."
    for notice in folder.environment.get("data_notes") or []:
        yield f"Data: {str(notice).rstrip('.')}."
    yield from _about_cut_answers(folder)
    yield from _about_leakage(folder)
    note = str((folder.environment.get("model") or {}).get("note") or "")
    if note:
        yield f"Model: {note.rstrip('.')}."
    if any(guards_of(folder.experiment, condition) for condition in folder.experiment.get("conditions") or {}):
        yield "Guards act in training only: every response here was generated and scored with all guards off."


def _about_runs(folder: ExperimentFolder) -> Iterator[str]:
    for run in folder.runs:
        if run.state == "failed":
            named = run.condition if run.seed is None else f"{words(run.condition)}, seed {run.seed}"
            yield f"Failed and not averaged: {named}: {run.error}."
    unfinished = [run for run in folder.runs if run.state == "unfinished"]
    if unfinished:
        some = ", ".join(_short_name(run) for run in unfinished[:MOST_NAMED])
        end = " …" if len(unfinished) > MOST_NAMED else "."
        verb = "is" if len(unfinished) == 1 else "are"
        yield f"{count(len(unfinished), 'run')} of {len(folder.runs)} did not finish and {verb} left out: {some}{end}"


def _about_problems(folder: ExperimentFolder) -> Iterator[str]:
    runs: dict[str, list[str]] = {}
    for run in folder.finished:
        for problem in run.problems:
            runs.setdefault(str(problem), []).append(_short_name(run))
    for said, names in runs.items():
        end = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        yield f"Not scored, and so left out: {said} ({', '.join(names[:MOST_NAMED])}{end})."


def _about_cut_answers(folder: ExperimentFolder) -> Iterator[str]:
    """Say of each evaluation set how many answers had not ended, and where most: what comes late in them is not scored."""
    tokens = (folder.experiment.get("generate") or {}).get("max_new_tokens")
    limit = f"generate.max_new_tokens ({tokens})" if tokens else "generate.max_new_tokens"
    for name in dict.fromkeys(name for run in folder.finished for name in run.cut):
        shares = {run: run.cut[name] for run in folder.finished if run.cut.get(name, (0, 0))[1] > 0}
        most = max(shares, key=lambda run: shares[run][0] / shares[run][1], default=None)
        if most is None or shares[most][0] / shares[most][1] < MUCH_CUT:
            continue
        cut = sum(one for one, _ in shares.values())
        of = sum(asked for _, asked in shares.values())
        yield (
            f"Cut off at {limit}: {cut} of {of} answers on {words(name)} had not ended (most in {_short_name(most)}, "
            f"{shares[most][0]} of {shares[most][1]}); they are scored as they stand."
        )


def _about_leakage(folder: ExperimentFolder) -> Iterator[str]:
    """Say which evaluation sets ask what was trained on; the record is untrusted, as every file of a folder is."""
    recorded = folder.environment.get("leakage")
    for name, found in recorded.items() if isinstance(recorded, dict) else ():
        shared, of = (found.get("shared"), found.get("of")) if isinstance(found, dict) else (None, None)
        if isinstance(shared, int) and isinstance(of, int) and shared > 0:
            yield (
                f"Leakage: {shared} of {of} prompts of {words(str(name))} are also trained on; what is measured there is "
                f"partly what was taught."
            )


def _about_untrained(folder: ExperimentFolder, summary: pd.DataFrame) -> Iterator[str]:
    """Say that what was not trained here has one run, and what an endpoint cannot be asked."""
    ran = list(dict.fromkeys(summary["condition"])) if not summary.empty else []
    there = [name for name in ran if name != BASE and not is_trained(folder.experiment, name)]
    if there:
        have = (
            "was not trained here and has one run" if len(there) == 1 else "were not trained here and have one run each"
        )
        yield (
            f"{listed([words(name) for name in there])} {have}, without a seed: intervals are over its prompts, and say "
            f"nothing of what another training would give."
        )
    for name in there:
        measured = set(summary.loc[summary["condition"] == name, "metric"])
        missing = [words(metric) for metric in folder.experiment.get("measure") or {} if metric not in measured]
        if missing and kind_of(folder.experiment, name) != "adapter":
            what = "answers over HTTP" if kind_of(folder.experiment, name) == "endpoint" else "is a whole model"
            yield f"{words(name)} {what}, so it has no {listed(missing)}."


def _short_name(run: Run) -> str:
    return words(run.condition) if run.seed is None else f"{words(run.condition)}/{run.seed}"


def _about_seeds(summary: pd.DataFrame) -> Iterator[str]:
    # The seeds that finished, not those that the file asks for: an interrupted experiment has fewer.
    seeds = 0 if summary.empty else int(summary["seeds"].max())
    if 0 < seeds < FEWEST_SEEDS:
        yield (
            f"{count(seeds, 'seed')}: no interval over seeds is possible; intervals shown are over prompts, "
            f"within these runs."
        )
    elif FEWEST_SEEDS <= seeds < MANY_SEEDS:
        yield (
            f"{seeds} seeds: intervals rest on {seeds - 1} degrees of freedom where seeds dominate, so they are wide, "
            f"and a permutation test cannot give a p-value under {2 / 2**seeds:.2g}. Five or more seeds say much more."
        )


def _about_the_table(folder: ExperimentFolder, summary: pd.DataFrame) -> Iterator[str]:
    baseline = baseline_name(folder.experiment)
    if baseline not in set(summary["condition"]):
        yield f"The baseline ({words(baseline)}) has no finished run: no difference can be shown."
    fewer = summary[(summary["seeds"] > 0) & (summary["seeds"] < summary["seeds"].max())]
    if not fewer.empty:
        yield f"Fewer seeds than the others: {', '.join(words(name) for name in dict.fromkeys(fewer['arm']))}."
    asked = summary["n"] + summary["unscored"]  # `n` counts what was scored
    of_all = summary.assign(asked=asked)[summary["unscored"] / asked.where(asked > 0) >= MUCH_UNSCORED]
    for row in of_all.to_dict("records"):
        yield (
            f"Unscored: {row['unscored']} of {row['asked']} responses ({row['unscored'] / row['asked']:.0%}) of "
            f"{words(row['arm'])} on {words(row['metric'])}, {words(row['eval_set'])}; they count for nothing, not for 0."
        )
    by_seed = sorted({words(name) for name in summary.loc[summary["over"] == "seeds", "metric"]})
    if by_seed:
        yield f"Over seeds alone, since no score of a single response reproduces it: {', '.join(by_seed)}."


def _about_roles(folder: ExperimentFolder, summary: pd.DataFrame) -> Iterator[str]:
    """Which roles were assumed, where a verdict on guards and controls rests on them."""
    if not (summary["mark"] == "unwanted").any():
        return
    ran = set(summary["condition"]) - {BASE}
    for role, plural in ((Role.GUARD, "guards"), (Role.CONTROL, "controls")):
        named = [words(name) for name, found in assumed(folder.experiment).items() if found is role and name in ran]
        if named:
            counts = f"counts as a {role}" if len(named) == 1 else f"count as {plural}"
            yield (
                f"The file gives no role for {listed(named)}, which {counts} here; `role: control`, `guard` or "
                "`reference` under the condition says otherwise."
            )
