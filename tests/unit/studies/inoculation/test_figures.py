"""Every figure of the study draws from tables alone, says what it shows, and is the same twice."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import inoculation_tables as simulated
from tropism.errors import UsageError
from tropism.results.section import Section
from tropism.studies.inoculation import rules as rule
from tropism.studies.inoculation.figures import FIGURES, StudyTables, figure, save_all
from tropism.studies.inoculation.summary import write_study


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    pressures = simulated.pressures(rng, drop=1.0, loss_drop=0.2, placebo_loss_drop=0.2, chats=120)
    random = simulated.random_controls(rng, pressures).assign(cosine=lambda t: -t["pressure"] / 20)
    runs = simulated.runs(rng).assign(projection_shift=lambda t: t["drift"] * 3)
    study = rule.analyse(pressures, random, runs)
    sides = pd.DataFrame({"side": ["promote", "suppress"] * 20, "site": study.site, "projection": rng.normal(size=40)})
    shift = pd.DataFrame(
        {"chat": range(20), "site": study.site, "predicted": rng.normal(size=20), "realised": range(20)}
    )
    steps = pd.DataFrame(
        [(c, s, t, study.site, rng.normal()) for c in simulated.CONDITIONS for s in range(3) for t in (0, 10, 20)],
        columns=["condition", "seed", "step", "site", "pressure"],
    )
    return StudyTables(study, pressures, random, sides, shift, steps)


@pytest.mark.parametrize("name", list(FIGURES))
def test_every_figure_has_labelled_axes_with_something_on_them(tables, name):
    drawn = figure(name, tables)
    assert drawn.axes
    for axes in drawn.axes:
        assert axes.get_ylabel()
        assert axes.lines or axes.patches or axes.collections


def test_pressure_by_site_shows_the_tables_numbers(tables):
    axes = figure("pressure_by_site", tables).axes[0]
    means = tables.study.means.query("metric == 'pressure' and condition == 'inoculation'")["value"]
    drawn = next(one for one in axes.containers if one.get_label() == "inoculation")
    assert list(drawn.lines[0].get_ydata()) == pytest.approx(list(means))


def test_the_random_directions_are_of_the_reporting_half_alone(tables):
    """The other half chose the site: moving it may not move the violins or the points."""
    other = tables.random["group"] == "select"
    assert other.any()
    moved = tables.random.assign(cosine=tables.random["cosine"] + 10.0 * other)
    one, two = (
        figure("alignment_against_random", dataclasses.replace(tables, random=random)).axes[0]
        for random in (tables.random, moved)
    )
    assert one.get_ylim() == two.get_ylim()
    for before, after in zip(one.collections, two.collections, strict=True):
        assert np.array_equal(before.get_paths()[0].vertices, after.get_paths()[0].vertices)
    here = tables.random[~other & (tables.random["site"] == tables.study.site) & (tables.random["draw"] == -1)]
    points = {line.get_ydata()[0] for line in one.lines if len(line.get_ydata()) == 1}
    assert points == set(here["cosine"])


def test_all_are_saved_the_same_twice_with_captions(tables, tmp_path, every_format):
    written = save_all(tables, tmp_path / "a")
    save_all(tables, tmp_path / "b")
    assert [one.file for one in written] == [f"inoculation_{name}" for name in FIGURES]
    for one in written:
        for ending in ("svg", "png", "pdf"):
            first, second = (tmp_path / f / f"{one.file}.{ending}" for f in ("a", "b"))
            assert first.read_bytes() == second.read_bytes()


def test_what_has_no_table_is_left_out_and_asking_for_it_says_so(tables, tmp_path):
    bare = StudyTables(tables.study, tables.pressures, tables.random)
    assert len(save_all(bare, tmp_path)) == len(FIGURES) - 3
    with pytest.raises(UsageError, match="figure 'pressure_over_training': these tables do not hold"):
        figure("pressure_over_training", bare)
    with pytest.raises(UsageError, match="name must be one of projection_distributions"):
        figure("nothing", bare)


def test_the_study_is_written_as_files_and_as_a_section(tables, tmp_path):
    write_study(tables, tmp_path)
    section = Section.load(tmp_path / "analyses" / "inoculation.json")
    assert section.claims[0].verdict == "supported"
    assert section.claims[0].numbers["site"] == tables.study.site
    json.dumps(section.claims[0].numbers, allow_nan=False)
    assert "**Verdict: supported.**" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert set(pd.read_csv(tmp_path / "pressure_metrics.csv")["table"]) >= {"mean", "difference", "drift"}
