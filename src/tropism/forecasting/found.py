"""What a forecast is asked for and what it finds: options, one trait's evidence and verdict, a score per row and trait."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from tropism.forecasting import dry_run, evidence, verdict
from tropism.forecasting.sample import Sample
from tropism.forecasting.sides import Side
from tropism.forecasting.trait import Trait


@dataclass(frozen=True)
class Options:
    """How much is measured; every number is a cost."""

    rows: int = 256
    """Rows whose projection and gradient are read."""
    own: int = 48
    """Prompts that the model answers itself."""
    gradient_pairs: int = 16
    """Pairs of each trait whose gradients are read."""
    sites: str = "25%..75%"
    max_new_tokens: int = 48
    batch_size: int = 16
    seed: int = 0
    prompts: int = 24
    """Held-out prompts that the dry run asks."""
    dry_share: float = 0.1
    """The dry run's share of the planned steps."""
    cache: Path | None = None
    """Where what is found of traits on models is kept; by default the cache folder."""


@dataclass(frozen=True, eq=False)
class TraitForecast:
    """One trait: the verdict and everything that it rests on."""

    trait: Trait
    outcome: verdict.Outcome
    because: str
    probability: float | None
    """That the data carries the trait, calibrated on planted sets (`calibration.py`); None where nothing can be said."""
    auc: float
    auc_low: float
    sites: tuple[str, ...]
    p: verdict.Corrected
    rated: evidence.Rated | None
    """None without a scorer, or where it can score nothing."""
    projected: evidence.Projected | None
    pulled: evidence.Pulled | None
    dry: dry_run.Predicted | None
    scores: np.ndarray | None = field(default=None, repr=False)
    """`[n]`, one per measured row: higher is more to blame."""
    shows: tuple[int, ...] = ()
    """The lines that show the trait, of those measured: its scorer finds it there, or they stand out along it."""
    side: Side | None = field(default=None, repr=False)
    """The trait on this model; None for a forecast made by hand."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """What `forecast` returns: verdicts by trait, and a score per row and trait."""

    model: str
    rows: int
    sample: Sample = field(repr=False)
    traits: tuple[TraitForecast, ...]
    open_shifts: tuple["OpenShift", ...]
    options: Options
    tiers: tuple[str, ...]
    planned_steps: int | None

    def table(self) -> pd.DataFrame:
        """One row per trait: its verdict, probability, measures and the sentence that says why."""
        rows = []
        for one in self.traits:
            p, g, d = one.projected, one.pulled, one.dry
            rows.append(
                {
                    "trait": one.trait.name,
                    "verdict": str(one.outcome),
                    "probability": one.probability,
                    "dose": None if p is None else p.dose,
                    "spreads": None if p is None else p.spreads,
                    "tail": None if p is None else p.tail,
                    "cosine": None if g is None else g.cosine,
                    "rate": None if one.rated is None else one.rated.rows,
                    "own_rate": None if one.rated is None else one.rated.own,
                    "predicted_rise": None if d is None else d.rise,
                    "because": one.because,
                }
            )
        return pd.DataFrame(rows)

    def blame(self) -> pd.DataFrame:
        """`row, trait, score`: every measured row's score for every trait that could be measured, higher is more to blame."""
        parts = [
            pd.DataFrame({"row": self.sample.lines, "trait": one.trait.name, "score": one.scores})
            for one in self.traits
            if one.scores is not None
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"row": [], "trait": [], "score": []})

    def expected(self) -> list[str]:
        """The traits whose verdict is *expected*."""
        return [one.trait.name for one in self.traits if one.outcome is verdict.Outcome.EXPECTED]

    def _repr_html_(self) -> str:
        return str(self.table().drop(columns="because").to_html(index=False, float_format="{:.2f}".format, na_rep="–"))


@dataclass(frozen=True)
class OpenShift:
    """A way in which the data differs from the model's own answers that no trait named: its most extreme rows."""

    share: float
    """Of the variance of the paired differences."""
    lines: tuple[int, ...]
    """The rows that lie furthest along it, the furthest first."""
