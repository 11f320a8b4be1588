"""What the forecast says of a planted set, and what the alternatives say: one row per set and library trait."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.forecast.bank import Bank, Rows
from benchmarks.forecast.sets import PlantedSet
from tropism.forecasting import evidence, forecast, projection, verdict
from tropism.forecasting.calibration import features, probability
from tropism.forecasting.sample import Sample
from tropism.forecasting.sides import Side
from tropism.forecasting.trait import Trait

PREDICTORS = (
    "forecast",
    "joint projection",
    "gradient cosine",
    "projection difference",
    "loss",
    "tf-idf",
    "random",
)


@dataclass(frozen=True, eq=False)
class Library:
    """The traits on the model, and their texts for TF–IDF."""

    traits: tuple[Trait, ...]
    sides: tuple[Side, ...]

    def tfidf(self, texts: Sequence[str]) -> np.ndarray:
        """Per trait and text, similarity to its examples less that to the examples without: `[traits, n]`."""
        contrasts = [[(pair.with_, pair.without) for pair in trait.pairs()] for trait in self.traits]
        every = [text for pairs in contrasts for pair in pairs for text in pair]
        fitted = TfidfVectorizer(ngram_range=(1, 2)).fit([*every, *texts])
        rows = fitted.transform(list(texts))
        found = []
        for pairs in contrasts:
            ones, twos = (np.asarray(fitted.transform([p[i] for p in pairs]).mean(axis=0)).ravel() for i in (0, 1))
            found.append(rows @ (ones / np.linalg.norm(ones) - twos / np.linalg.norm(twos)))
        return np.stack(found)


def cells(one: PlantedSet, bank: Bank, library: Library, seed: int) -> list[dict[str, Any]]:
    """One row per library trait: what is true, what the forecast says, and what every predictor scores."""
    rows, labels = one.rows(bank)
    own = bank.own()
    found = _measured(rows, own, bank, library)
    corrected = forecast.corrected(found)
    tfidf = library.tfidf(rows.texts)
    rng = np.random.default_rng(seed)
    out = []
    for number, (trait, side, m, p) in enumerate(zip(library.traits, library.sides, found, corrected, strict=True)):
        planted = np.array([label == trait.name for label in labels])
        cell: dict[str, Any] = {
            "half": one.half,
            "set": one.name,
            "trait": trait.name,
            "share": float(planted.mean()),
            "plain": not one.plants,
        }
        if m.projected is None or m.scores is None:
            out.append(cell | {"verdict": "cannot"})
            continue
        said = verdict.decide(side.auc, side.valid, m.rated, m.projected, m.pulled, p, None, trait.kind)
        alone = np.mean(
            [
                (rows.h[:, i] - own.h[:, i].mean(axis=0))
                @ side.difference[s]
                / (side.difference[s] @ side.difference[s])
                for i, s in enumerate(bank.reader.sites)
                if s in side.difference
            ],
            axis=0,
        )
        assert side.pulls is not None
        pull = rows.g @ side.pulls.mean(axis=0) / np.linalg.norm(side.pulls.mean(axis=0))
        joint = m.shares if m.shares is not None else alone
        by_row = {
            "forecast": m.scores,
            "joint projection": joint,
            "gradient cosine": pull,
            "projection difference": alone,
            "loss": rows.loss,
            "tf-idf": tfidf[number],
            "random": rng.random(len(planted)),
        }
        cell |= {
            "verdict": str(said.outcome),
            "features": features(m.rated, m.projected, m.pulled),
            "score/forecast": probability(m.rated, m.projected, m.pulled),
            **{f"score/{name}": float(np.mean(values)) for name, values in by_row.items() if name != "forecast"},
        }
        k = int(planted.sum())
        if 0 < k < len(planted):
            for name, values in by_row.items():
                cell[f"precision/{name}"] = float(planted[np.argsort(-values, kind="stable")[:k]].mean())
        out.append(cell)
    return out


def _measured(rows: Rows, own: Rows, bank: Bank, library: Library) -> list[forecast.Measured]:
    """The forecast's own evidence, of rows that are read already."""
    sites = bank.reader.sites
    z, z_own = (projection.shares(library.sides, sites, h, own.h) for h in (rows.h, own.h))
    nulls = projection.Nulls(sites, rows.h, own.h, draws=evidence.DRAWS, seed=0)
    lines = tuple(range(len(rows.texts)))
    sample = Sample(lines, rows.chats, (), own.chats, len(lines))
    return [
        forecast.measure(
            trait,
            side,
            (z[side.name], z_own[side.name]) if side.valid else None,
            nulls,
            sample,
            rows.chats,
            rows.g,
            0,
        )
        for trait, side in zip(library.traits, library.sides, strict=True)
    ]
