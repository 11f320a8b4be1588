"""A sample of `make sweep`: right or refused, never silently wrong, never a traceback; and the page says the same."""

import re

import pytest

import sweep

SAMPLE = {
    "llama": "right right right right right",
    "gemma2": "right right right right right",
    "granite": "right refused refused right right",
    "mamba": "right right refused right right",
    "qwen3_moe": "right right right refused right",
    "youtu": "right right right right right",  # latent attention: [B, 1, T, d]
    "bert": "right refused refused right right",
    "granitemoeshared": "right refused refused right right",
    "xlnet": "refused refused refused refused right",
}


@pytest.mark.parametrize("name", SAMPLE)
def test_right_or_refused(name):
    found = sweep.row(name)
    said = {column: cell.said for column, cell in found.items()}
    assert " ".join(found[column].state for column in sweep.COLUMNS) == SAMPLE[name], said
    assert all(cell.said for cell in found.values() if cell.state == sweep.REFUSED)


def test_the_page_has_no_wrong_cell_and_agrees_with_the_sample():
    page = sweep.PAGE.read_text(encoding="utf-8")
    rows = {m[1]: re.sub(r" \[\d+\]", "", m[2]) for m in re.finditer(r"^\| `([\w-]+)` \| (.*) \|$", page, re.M)}
    assert len(rows) > 150
    assert not {name for name, cells in rows.items() if sweep.WRONG in cells or sweep.TRACEBACK in cells}
    for name, cells in SAMPLE.items():
        assert rows[name].split(" | ") == cells.split()
