"""The refusal study as a section of the report: its claims, the comparisons, the ledger, how much was learned."""

from typing import Any

import pandas as pd

from tropism.results.rules import numbers
from tropism.results.section import Section, Table
from tropism.studies.refusal.rules import START, Arms, Tables, change, decide, exactness, leak_claims, likelihood

LEAKS = ("leak_before", "leak_after", "leak_cumulative")


def analyse(tables: Tables, arms: Arms, margin: float, name: str = "refusal") -> Section:
    """Return the section: the verdicts, the comparisons, the ledger, how much was learned."""
    hypothesis = decide(tables, arms, margin)
    claims, shown = [hypothesis], [comparisons(tables, arms)]
    if tables.loss is not None:
        claims.append(likelihood(tables.loss, arms, margin))
        shown.append(losses(tables.loss, arms))
    claims += [exactness(tables, arms, margin), *leak_claims(tables, arms)]
    return Section(
        name=name,
        title="Does refusal survive the attack?",
        summary=f"{hypothesis.verdict[:1].upper()}{hypothesis.verdict[1:]}: {hypothesis.because}",
        claims=claims,
        tables=[*shown, ledger_table(tables), learned_table(tables.learned)],
        notes=[
            "Refusal is a keyword rate: the share of scored responses that open like a refusal. Compare it with a "
            "judge before a claim rests on it.",
            f"The margin is {margin:g}; intervals are of 95 %, over seeds and prompts, of differences paired by both.",
        ],
    )


def kept(tables: Tables, arms: Arms) -> pd.DataFrame:
    """Return what every condition keeps of refusing over the attack alone, for a figure.

    Columns: `measure, condition, value, low, high`; of the rate, and of the log-likelihood of refusing responses where
    their loss was measured. `low` and `high` are NaN where there is no interval.
    """
    measured = [("refusal rate", tables.refusal, tables.bounds)]
    if tables.loss is not None:
        # Minus the loss, so that in both panels more is more refusing.
        likelihoods = tables.loss.assign(value=-tables.loss["value"])
        measured.append(("log-likelihood of a refusal,\nnats per token", likelihoods, None))
    rows = []
    for measure, table, bounds in measured:
        for condition in dict.fromkeys([START, *table["condition"]]):
            gain = change(table, condition, arms.vanilla, bounds) if condition != arms.vanilla else None
            if gain is not None:
                low, high = (float("nan") if end is None else end for end in (gain.low, gain.high))
                rows.append([measure, condition, gain.value, low, high])
    return pd.DataFrame(rows, columns=["measure", "condition", "value", "low", "high"])


def comparisons(tables: Tables, arms: Arms) -> Table:
    """Compare the constraint with every other condition, on the declined topic and on others."""
    rows = []
    for other in dict.fromkeys([START, *tables.refusal["condition"]]):
        if other == arms.constraint:
            continue
        row: list[Any] = [other]
        for table in (tables.refusal, tables.over_refusal):
            row += numbers(change(table, arms.constraint, other, tables.bounds)).values()
        rows.append(row)
    columns = ["than", "refusal", "low", "high", "over-refusal", "low", "high"]
    return Table(
        "How much more refusal under the constraint", columns, rows,
        "Rate under the constraint minus rate under the other condition, on held-out prompts of the topic and on "
        "others; without an interval where fewer than three seeds ran.",
    )  # fmt: skip


def losses(loss: pd.DataFrame, arms: Arms) -> Table:
    """Show the loss of refusing responses under every condition, and how much of it the constraint saves."""
    rows = []
    for condition, part in loss.groupby("condition", sort=False):
        name = str(condition)
        saved = change(loss, name, arms.constraint) if name != arms.constraint else None
        rows.append([name, float(part["value"].mean()), *numbers(saved).values()])
    return Table(
        "How likely refusing still is", ["condition", "loss", "less under the constraint by", "low", "high"], rows,
        "Mean loss of a refusing response to the held-out prompts, in nats per token: the higher, the less likely the "
        "model is to refuse, also where it never does.",
    )  # fmt: skip


def ledger_table(tables: Tables) -> Table:
    """Show the largest leaks over all steps and seeds, one row per condition under an update constraint."""
    rows = []
    for condition, part in tables.ledger.groupby("condition", sort=False):
        last = part.sort_values("step").groupby("seed")["leak_cumulative"].last()
        rows.append([
            str(condition), "update" if tables.exact.get(str(condition)) else "gradient or soft",
            int(part["seed"].nunique()), int(part["step"].max()),
            *(float(part[name].max()) for name in LEAKS), float(last.mean()),
            float(part["share_removed"].mean()), float(part["cosine"].mean()),
        ])  # fmt: skip
    columns = [
        "condition", "rule", "seeds", "steps", "largest leak of a step, before", "after", "largest cumulative leak",
        "cumulative leak at the end", "share removed", "cosine",
    ]  # fmt: skip
    return Table(
        "The ledger", columns, rows,
        "Leak: the share of what was learned that lies along the direction, of a step before and after its correction "
        "and of all steps together; share removed: of the squared gradient; cosine: of gradient and direction.",
    )  # fmt: skip


def learned_table(learned: pd.DataFrame) -> Table:
    """Show how much each condition changed the weights."""
    rows = []
    for condition, part in learned.groupby("condition", sort=False):
        norms = part["norm"]
        spread = [float(norms.mean()), float(norms.min()), float(norms.max())]
        rows.append([str(condition), int(part["seed"].nunique()), *spread])
    return Table(
        "How much was learned", ["condition", "seeds", "mean", "least", "most"], rows,
        "The length of the change of the weights, sqrt(Σ ‖ΔW‖²): a guard that only learns less shows here.",
    )  # fmt: skip
