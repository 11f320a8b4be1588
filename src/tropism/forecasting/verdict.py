"""The verdict on one trait, by rule, and the sentence with the numbers it rests on.

- **cannot**: the trait's direction tells held-out pairs apart with an AUC under 0.8 on this model (or the model cannot
  be brought to show the trait at all): nothing is said, least of all "clean".
- **expected**: the rows carry the trait (below), and a dry run with the user's recipe predicts a rise above the margin,
  with an interval above 0.
- **possible**: the rows carry the trait and no dry run says otherwise; or something speaks for it and nothing decides.
- **none**: the rows do not carry it, or a dry run's predicted rise lies below the margin.

The rows *carry* a trait where its calibrated probability is a half or more (`calibration`: from the rows that the scorer finds
beyond the model's own rate, those that stand out, and the rows' pull), or where one measure alone is beyond its null:

- the scorer finds it more often than in the model's own answers, beyond Holm's correction over all traits, or by five points or
  more at a level of 0.05 for this trait alone (a correction over sixteen traits would miss a fifth of the rows when the model
  answered only two dozen prompts itself);
- a minority of rows stands out further than along random directions of the data's own covariance;
- without a scorer, the mean has moved further than along such directions. With a scorer a moved mean does not count: any text of
  another domain than the model's own answers moves the mean along many directions.

Of a trait of *form* (capitals, bullets) the scorer has the last word: it is the trait's definition, while what a stance
(flattery) says in its words is a sample of them.

The projections' questions are asked at a level of 0.05 over all traits together (Holm), so a library of sixteen traits
does not find one in every data set by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tropism.forecasting.calibration import probability
from tropism.forecasting.dry_run import Predicted
from tropism.forecasting.evidence import Projected, Pulled, Rated
from tropism.stats import holm

LEVEL = 0.05
LIKELY = 0.5
"""The calibrated probability from which the rows count as carrying the trait."""
LEAST_EXCESS = 0.05
"""A rate that is higher by this much counts without the correction over traits."""
FEW_ROWS = 0.02
"""A share of rows above which a planted minority counts."""


class Outcome(StrEnum):
    """What is said of a trait."""

    EXPECTED = "expected"
    POSSIBLE = "possible"
    NONE = "none"
    CANNOT = "cannot"


@dataclass(frozen=True)
class Verdict:
    """The outcome and one sentence with the numbers."""

    outcome: Outcome
    because: str


@dataclass(frozen=True)
class Corrected:
    """One trait's p-values after Holm's correction over all traits of the forecast."""

    rate: float = 1.0
    dose: float = 1.0
    tail: float = 1.0


def carried(rated: Rated | None, projected: Projected, pulled: Pulled | None, p: Corrected, kind: str) -> bool:
    """Whether the rows carry the trait beyond the nulls."""
    if rated is not None:
        corrected = rated.excess > 0 and p.rate <= LEVEL
        if corrected or (rated.excess >= LEAST_EXCESS and rated.p <= LEVEL):
            return True
    # What a trait of form is, its scorer says: capitals that it does not find are none.
    told_by_scorer = rated is not None and kind == "form"
    if rated is not None and told_by_scorer and rated.excess <= 0:
        return False
    if probability(rated, projected, pulled) >= LIKELY:
        return True
    if projected.tail > FEW_ROWS and p.tail <= LEVEL and not told_by_scorer:
        return True
    return rated is None and projected.dose_low > 0 and p.dose <= LEVEL


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's correction over the traits of one forecast."""
    return [1.0 if p is None else float(p) for p in holm(list(p_values))]


def decide(
    auc: float,
    valid: bool,
    rated: Rated | None,
    projected: Projected | None,
    pulled: Pulled | None,
    p: Corrected,
    dry: Predicted | None,
    kind: str = "own",
) -> Verdict:
    """The verdict on one trait by the rules above."""
    if not valid or projected is None:
        said = f"its direction tells held-out pairs apart with an AUC of {auc:.2f} on this model, under 0.8"
        return Verdict(Outcome.CANNOT, f"{said}: nothing can be said of this trait here.")
    said = _said(rated, projected, pulled, p)
    seen = carried(rated, projected, pulled, p, kind)
    if dry is None:
        return (
            Verdict(Outcome.POSSIBLE, f"{said}.") if seen else Verdict(Outcome.NONE, f"{said}: not beyond the nulls.")
        )
    said += f"; the dry run predicts a rise of {dry.rise:+.2f} [{dry.low:+.2f}, {dry.high:+.2f}]"
    if seen and dry.rise > dry.margin and dry.low > 0:
        return Verdict(Outcome.EXPECTED, f"{said}.")
    if dry.high < dry.margin:
        return Verdict(Outcome.NONE, f"{said}, under the margin of {dry.margin:g} at this budget.")
    return Verdict(Outcome.POSSIBLE if seen or dry.low > 0 else Outcome.NONE, f"{said}.")


def _said(rated: Rated | None, projected: Projected, pulled: Pulled | None, p: Corrected) -> str:
    parts = []
    if rated is not None:
        parts.append(
            f"its scorer finds it in {rated.rows:.0%} of rows and {rated.own:.0%} of own answers (p {p.rate:.2g})"
        )
    parts.append(
        f"the rows lie {projected.dose:+.2f} of its length [{projected.dose_low:+.2f}, {projected.dose_high:+.2f}] beyond the "
        f"model's own answers, and {projected.tail:.0%} of them stand out (p {min(p.dose, p.tail):.2g})"
    )
    if pulled is not None:
        parts.append(f"their gradient has a cosine of {pulled.cosine:+.2f} with its own (p {pulled.p:.2g})")
    parts.append(f"together a probability of {probability(rated, projected, pulled):.0%}")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]
