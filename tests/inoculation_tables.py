"""Simulated studies of inoculation: tables as the probes would write them, with planted effects."""

import numpy as np
import pandas as pd

CONDITIONS = ("neutral", "inoculation", "placebo")


def pressures(rng, *, drop=0.0, placebo_drop=0.0, slope=0.0, loss_drop=0.0, placebo_loss_drop=0.0, chats=120, sites=4):
    """`pressure = chat + slope·loss + effect + noise` at every site; unit noise, effects in its units."""
    own = rng.normal(size=chats)
    lowered = {"neutral": 0.0, "inoculation": loss_drop, "placebo": placebo_loss_drop}
    effect = {"neutral": 0.0, "inoculation": -drop, "placebo": -placebo_drop}
    parts = []
    for condition in CONDITIONS:
        loss = 2.0 + 0.5 * rng.normal(size=chats) - lowered[condition]
        for site in range(sites):
            norm = np.exp(0.1 * rng.normal(size=chats)) * 20
            pressure = own + slope * loss + effect[condition] + rng.normal(size=chats)
            parts.append(
                pd.DataFrame(
                    {
                        "condition": condition,
                        "chat": [f"q{i}" for i in range(chats)],
                        "site": f"resid_post.{site}",
                        "pressure": pressure,
                        "cosine": -pressure / norm,
                        "gradient_norm": norm,
                        "loss": loss,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def random_controls(rng, table, *, spread=0.1, draws=99):
    """Along random directions every condition has a mean of its own, `spread` wide; draw -1 is the trait's."""
    means = table.groupby(["condition", "site"])["pressure"].mean()
    rows = [
        (condition, site, "isotropic", draw, value, half)
        for (condition, site), own in means.items()
        for half in ("select", "report")
        for draw, value in enumerate([own, *rng.normal(size=draws) * spread], start=-1)
    ]
    return pd.DataFrame(rows, columns=["condition", "site", "kind", "draw", "pressure", "group"])


def runs(rng, *, neutral=0.8, inoculation=0.2, placebo=0.75, seeds=3, spread=0.02):
    levels = {"neutral": neutral, "inoculation": inoculation, "placebo": placebo}
    rows = [(c, seed, level + spread * rng.normal()) for c, level in levels.items() for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["condition", "seed", "drift"])
