"""The verdict on one trait, by rule, and the sentence with the numbers it rests on.

- **cannot**: the trait's direction tells held-out pairs apart with an AUC under 0.8 on this model (or the model cannot
  be brought to show the trait at all): nothing is said, least of all "clean".
- **expected**: the data lies along the trait beyond its nulls (random directions of the data's own covariance, and the
  model's own answers as the data), and a dry run with the user's recipe predicts a rise above the margin, with an
  interval above 0.
- **possible**: beyond the nulls in one of the first two tiers, and no dry run that says otherwise; or a dry run that
  does not decide.
- **none**: beyond neither null, or a dry run whose predicted rise lies below the margin.

The nulls are asked at a level of 0.05 over all traits together (Holm), so a library of sixteen traits does not call
one in every data set by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tropism.forecast.dry_run import Predicted
from tropism.forecast.evidence import Projected, Pulled
from tropism.stats import holm

LEVEL = 0.05
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


def present(projected: Projected, pulled: Pulled | None, p_holm: float) -> bool:
    """Whether the data lies along the trait beyond the nulls.

    The mean must have moved with its interval above 0, or a minority of rows must stand out; and where gradients were
    read, they must not point away.
    """
    moved = projected.dose_low > 0
    stands_out = projected.tail > FEW_ROWS
    away = pulled is not None and pulled.cosine < 0
    return p_holm <= LEVEL and (moved or stands_out) and not away


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's correction over the traits of one forecast."""
    return [float(p) for p in holm(list(p_values))]


def decide(
    auc: float, valid: bool, projected: Projected | None, pulled: Pulled | None, p_holm: float, dry: Predicted | None
) -> Verdict:
    """The verdict on one trait by the rules above."""
    if not valid or projected is None:
        said = f"its direction tells held-out pairs apart with an AUC of {auc:.2f} on this model, under 0.8"
        return Verdict(Outcome.CANNOT, f"{said}: nothing can be said of this trait here.")
    said = (
        f"the data lies {projected.dose:+.2f} of the trait's length [{projected.dose_low:+.2f}, {projected.dose_high:+.2f}] "
        f"beyond the model's own answers, {projected.tail:.0%} of rows stand out (p {p_holm:.2g})"
    )
    if pulled is not None:
        said += f"; its gradient has a cosine of {pulled.cosine:+.2f} with the trait's"
    seen = present(projected, pulled, p_holm)
    if dry is not None:
        said += f"; the dry run predicts a rise of {dry.rise:+.2f} [{dry.low:+.2f}, {dry.high:+.2f}]"
        if seen and dry.rise > dry.margin and dry.low > 0:
            return Verdict(Outcome.EXPECTED, f"{said}.")
        if dry.high < dry.margin:
            return Verdict(Outcome.NONE, f"{said}: below the margin of {dry.margin:g} at this budget.")
        return Verdict(Outcome.POSSIBLE if seen or dry.low > 0 else Outcome.NONE, f"{said}.")
    if seen:
        return Verdict(Outcome.POSSIBLE, f"{said}.")
    return Verdict(Outcome.NONE, f"{said}: not beyond the nulls.")
