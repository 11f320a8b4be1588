"""Whether a direction means anything: held-out AUC at each site, and both sides' projections at the best one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tropism.reports.figures import style

Site = Mapping[str, Any]


def sites_of(report: Mapping[str, Any]) -> list[Site]:
    """Return the sites of a validity report that have an AUC."""
    sites = report.get("sites")
    return [site for site in sites if "auc" in site] if isinstance(sites, list) else []


def draw_auc(sites: Sequence[Site], folder: Path, name: str) -> str:
    """Draw AUC over the sites, against the level of chance."""
    with style.figure(4.7, 2.9) as drawn:
        axes = drawn.add_subplot()
        places = np.arange(len(sites))
        auc = np.array([float(site["auc"]) for site in sites])
        low = np.array([float(site.get("auc_low", site["auc"])) for site in sites])
        high = np.array([float(site.get("auc_high", site["auc"])) for site in sites])
        axes.axhline(0.5, color=style.MUTED, linewidth=0.8, linestyle=":")
        axes.annotate("chance", (0, 0.5), xytext=(0, 3), textcoords="offset points", color=style.MUTED, fontsize=8)
        axes.vlines(places, low, high, color=style.COLOURS[0], linewidth=1.2, alpha=0.6)
        axes.plot(places, auc, "o-", color=style.COLOURS[0], markersize=5)
        axes.set_xticks(places, [str(site.get("site", "")).removeprefix("resid_post.") for site in sites])
        axes.set_ylim(min(0.4, float(low.min())) - 0.02, 1.03)
        style.titles(axes, "block", "held-out AUC")
        return style.save(drawn, folder, name)


def draw_projections(site: Site, folder: Path, name: str) -> str | None:
    """Draw histograms of held-out projections, positive against negative; return None where the report has none."""
    histogram = site.get("histogram")
    if not isinstance(histogram, Mapping) or not {"edges", "positive", "negative"} <= set(histogram):
        return None
    with style.figure(4.7, 2.9) as drawn:
        axes = drawn.add_subplot()
        for side, colour, line in (("negative", style.COLOURS[0], "--"), ("positive", style.COLOURS[1], "-")):
            axes.stairs(histogram[side], histogram["edges"], color=colour, linestyle=line, linewidth=1.3, label=side)
            axes.stairs(histogram[side], histogram["edges"], color=colour, fill=True, alpha=0.12)
        axes.legend(loc="best")
        style.titles(axes, f"projection at {site.get('site', '')}", "held-out chats")
        return style.save(drawn, folder, name)
