"""The benchmark's table: the probability fitted on the calibration half, everything reported on the test half."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.forecast.predict import PREDICTORS
from benchmarks.forecast.sets import SIZE

LEAST = 0.05
"""From this share on a set counts as carrying the trait; a single row is shown and not counted."""
FEATURES = ("excess", "tail", "pull")


def write(folder: Path) -> None:
    """Print and write `report.json`."""
    files = {half: folder / f"{half}.jsonl" for half in ("calibration", "test")}
    halves = {half: _read(file) for half, file in files.items() if file.is_file()}
    found: dict[str, Any] = {half: _half(table) for half, table in halves.items()}
    if "calibration" in halves:
        found["fit"] = _fit(halves["calibration"])
    trained = folder / "trained.jsonl"
    if trained.is_file():
        found["realised"] = _realised(halves, [json.loads(line) for line in trained.read_text().splitlines()])
    (folder / "report.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def _read(path: Path) -> pd.DataFrame:
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])


def _fit(table: pd.DataFrame) -> dict[str, Any]:
    """The weights, to be put into `calibration.py`."""
    used = table[table["features"].notna() & ((table["share"] == 0) | (table["share"] >= LEAST))]
    x = np.array([[one[name] for name in FEATURES] for one in used["features"]])
    y = (used["share"] >= LEAST).to_numpy()
    model = LogisticRegression(C=1.0).fit(x, y)
    return {
        "intercept": round(float(model.intercept_[0]), 3),
        "weights": [round(float(w), 3) for w in model.coef_[0]],
        "features": FEATURES,
        "cells": len(used),
        "present": int(y.sum()),
    }


def _half(table: pd.DataFrame) -> dict[str, Any]:
    known = table[table["features"].notna()]
    absent = known[known["share"] == 0]
    plain = known[known["plain"]]
    alarms = plain["verdict"].isin(["possible", "expected"])
    present = known[known["share"] >= LEAST]
    found: dict[str, Any] = {
        "sets": int(table["set"].nunique()),
        "cannot": sorted(set(table.loc[table["verdict"] == "cannot", "trait"])),
        "plain sets with a false alarm": float(alarms.groupby(plain["set"]).any().mean()) if len(plain) else None,
        "false alarms per trait and plain set": float(alarms.mean()) if len(plain) else None,
        "false alarms by trait": plain.loc[alarms, "trait"].value_counts().to_dict(),
        "false alarms per absent trait of a planted set": float(
            absent.loc[~absent["plain"], "verdict"].isin(["possible", "expected"]).mean()
        ),
        "planted traits called (5 % and more)": float(present["verdict"].isin(["possible", "expected"]).mean()),
        "missed": sorted(present.loc[present["verdict"] == "none", "set"]),
        "probability, mean square error": float(((known["score/forecast"] - (known["share"] >= LEAST)) ** 2).mean()),
    }
    sure = known[known["score/forecast"] >= 0.5]
    found["true where the probability is a half or more"] = float((sure["share"] >= 0.01).mean()) if len(sure) else None
    for share, name in ((0.01, "one row"), (0.05, "5 %"), (0.25, "25 %"), (1.0, "all")):
        rows = known[np.isclose(known["share"], max(1, round(share * SIZE)) / SIZE)]
        found[f"AUC at {name}"] = {p: _auc(rows, absent, f"score/{p}") for p in PREDICTORS}
        if share < 1:
            found[f"precision of blamed rows at {name}"] = {
                p: round(float(rows[f"precision/{p}"].mean()), 3) for p in PREDICTORS
            }
    return found


def _auc(present: pd.DataFrame, absent: pd.DataFrame, column: str) -> float | None:
    both = pd.concat([present, absent])
    if present.empty or absent.empty:
        return None
    return round(float(roc_auc_score([1] * len(present) + [0] * len(absent), both[column])), 3)


def _realised(halves: dict[str, pd.DataFrame], trained: list[dict[str, Any]]) -> dict[str, Any]:
    """Predicted against realised: every trained set, every trait that is planted in its half."""
    rows = []
    for one in trained:
        table = halves[one["half"]]
        of_set = table[table["set"] == one["set"].removeprefix(f"{one['half']} ")].set_index("trait")
        for trait, rise in one["rise"].items():
            cell = of_set.loc[trait]
            if isinstance(cell["features"], dict):
                carried = max(np.expm1(cell["features"][name]) / 50 for name in ("excess", "tail"))
                scores = {p: cell[f"score/{p}"] for p in PREDICTORS} | {"rows that show it": carried}
                rows.append({"half": one["half"], "rise": rise, "share": cell["share"], **scores})
    table = pd.DataFrame(rows)
    found: dict[str, Any] = {"trainings": len(trained)}
    for half, part in table.groupby("half"):
        positive = part["rise"] >= 0.1
        found[str(half)] = {
            "cells": len(part),
            "rose by 0.1": int(positive.sum()),
            "rise at a quarter of the rows": round(float(part.loc[part["share"].between(0.2, 0.3), "rise"].mean()), 3),
            "rise at all rows": round(float(part.loc[part["share"] == 1, "rise"].mean()), 3),
            "r": {
                p: round(float(np.corrcoef(part[p].astype(float), part["rise"])[0, 1]), 3)
                for p in (*PREDICTORS, "rows that show it")
            },
            "AUC of a rise by 0.1": {
                p: round(float(roc_auc_score(positive, part[p].astype(float))), 3)
                for p in (*PREDICTORS, "rows that show it")
            },
        }
    return found
