"""Figures of a routing study: the right marks in the right places, and tables that cannot be drawn."""

import numpy as np
import pandas as pd
import pytest

from tropism.errors import RunFolderError
from tropism.studies.routing import figures as routing


def modes(arms=("all labelled", "half labelled")):
    rows = [
        (arm, mode, metric, 0.1 * i + 0.05 * j, 0.1 * i, 0.1 * i + 0.1)
        for arm in arms
        for i, mode in enumerate(routing.MODE_MARKS)
        for j, metric in enumerate(("caps_rate", "loss"))
    ]
    return pd.DataFrame(rows, columns=["arm", "mode", "metric", "value", "low", "high"])


def test_modes(tmp_path, every_format):
    svg = routing.draw_modes(modes(), ["caps_rate", "loss"], tmp_path, "modes")
    for text in ("all labelled", "half labelled", "forget ablated", "retain ablated", "caps rate", "loss"):
        assert f">{text}<" in svg
    assert {f.name for f in tmp_path.iterdir()} == {"modes.svg", "modes.png", "modes.pdf"}
    assert routing.draw_modes(modes(), ["caps_rate", "loss"], tmp_path / "again", "modes") == svg


def test_the_trait_alone_has_its_arms_down(tmp_path):
    table = modes()
    table = table[table["metric"] == "caps_rate"]
    svg = routing.draw_trait(table, "caps_rate", tmp_path, "trait")
    for text in ("all labelled", "half labelled", "forget ablated", "retain ablated", "caps rate"):
        assert f">{text}<" in svg
    assert svg.count("stroke-width: 1.2") == 6


def test_modes_without_intervals_draw_none(tmp_path):
    table = modes()
    with_intervals = routing.draw_modes(table, ["loss"], tmp_path, "modes")
    without = routing.draw_modes(table.assign(low=np.nan, high=np.nan), ["loss"], tmp_path, "modes")
    assert with_intervals.count("stroke-width: 1.2") == 6
    assert without.count("stroke-width: 1.2") == 0


def test_curves(tmp_path):
    table = pd.DataFrame(
        {
            "arm": ["trait"] * 3 + ["benign"] * 3,
            "step": [0, 4, 16] * 2,
            "value": [0, 0.4, 0.8, 0, 0, 0.1],
            "low": np.nan,
            "high": np.nan,
        }
    )
    svg = routing.draw_curves(table, "step", "training step", "trait rate", tmp_path, "relearning", steps=True)
    for text in ("trait", "benign", "16", "training step", "trait rate"):
        assert f">{text}<" in svg


def test_tables_that_cannot_be_drawn_are_errors(tmp_path):
    with pytest.raises(
        RunFolderError, match="columns arm, mode, metric, value, low, high, found 12 rows and arm, mode"
    ):
        routing.draw_modes(modes().drop(columns="low"), ["loss"], tmp_path, "modes")
    with pytest.raises(RunFolderError, match="found 0 rows"):
        routing.draw_curves(
            pd.DataFrame(columns=["arm", "scale", "value", "low", "high"]), "scale", "", "", tmp_path, "f"
        )
    with pytest.raises(RunFolderError, match="must hold metric 'accuracy', found caps_rate, loss"):
        routing.draw_modes(modes(), ["accuracy"], tmp_path, "modes")


def geometry():
    rows = [
        {
            "layer": layer,
            "module": module,
            **{
                f"{key}{suffix}": value
                for key in routing.GEOMETRY_PANELS
                for suffix, value in (("", 0.3 if layer else 0.01), ("_null", 0.0), ("_low", -0.1), ("_high", 0.1))
            },
        }
        for layer in range(3)
        for module in ("q_proj", "down_proj")
    ]
    return pd.DataFrame(rows)


def test_the_heat_map_has_a_panel_a_quantity_and_dots_outside_the_null(tmp_path):
    svg = routing.draw_geometry(geometry(), tmp_path, "geometry")
    for text in ("q_proj", "down_proj", "cosine of the two ΔW", "overlap of input spaces", "layer"):
        assert f">{text}<" in svg
    inside = geometry().assign(**{f"{key}_high": 1.0 for key in routing.GEOMETRY_PANELS})
    assert routing.draw_geometry(inside, tmp_path, "geometry").count("<use") == svg.count("<use") - 3 * 4


def test_weights_outside_blocks_are_left_out_of_the_heat_map(tmp_path):
    with pytest.raises(RunFolderError, match="at least one weight inside a block"):
        routing.draw_geometry(geometry().assign(layer=None), tmp_path, "geometry")
