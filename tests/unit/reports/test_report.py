"""The page and what lies beside it: same bytes every time, nothing from outside, nothing from a model as
markup.
"""

import base64
import hashlib
import html
import json
import re
import zlib

import matplotlib as mpl
import pandas as pd
import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner

import fake_runs
from tropism import errors, reports
from tropism.cli import report as commands
from tropism.reports import comparing, export, responses, svg, terminal
from tropism.reports.figures import style, training
from tropism.results import text
from tropism.results.folder import load
from tropism.results.section import Claim, Figure, Section, Table


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = fake_runs.caps(tmp_path_factory.mktemp("caps") / "caps", prompts=16, steps=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TROPISM_FIGURES")  # all formats, as a user has them
        return reports.build(folder)


def embedded(page):
    packed, text = re.search(r'id="data"( data-packed)?>(.*?)</script>', page, re.DOTALL).groups()
    return json.loads(zlib.decompress(base64.b64decode(text)) if packed else text)


def test_writes_the_report_the_figures_and_the_tables(built):
    folder = built.parent
    assert built.name == "report.html"
    names = {path.name for path in (folder / "figures").iterdir()}
    for stem in (
        "tradeoff-caps_rate-in_domain",
        "training-loss",
        "direction-caps",
        "direction-caps-projections",
    ):
        assert {f"{stem}.svg", f"{stem}.png", f"{stem}.pdf"} <= names
    assert {path.name for path in (folder / "tables").iterdir()} == {
        "summary.csv",
        "summary.md",
        "summary.tex",
    }
    assert len(pd.read_csv(folder / "tables" / "summary.csv")) == 32


def test_the_same_folder_gives_the_same_bytes(built):
    files = [
        built,
        *sorted((built.parent / "figures").iterdir()),
        *sorted((built.parent / "tables").iterdir()),
    ]
    before = [path.read_bytes() for path in files]
    reports.build(built.parent)
    assert [path.read_bytes() for path in files] == before


def test_question_and_verdict_come_before_everything_else(built):
    page = built.read_text(encoding="utf-8")
    order = [
        page.index(mark)
        for mark in ('<h1 id="question">', 'class="verdict', 'id="results"', 'id="caveats"', 'id="reproduce"')
    ]
    assert order == sorted(order)
    assert "Which guard keeps ALL CAPS out" in page
    assert "tropism run examples/caps.yaml" in page


def test_nothing_is_loaded_and_only_our_own_script_may_run(built):
    page = built.read_text(encoding="utf-8")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page)[1])
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        ours = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"""\s(?:src|style|on\w+)=["']""", page)
    assert not re.search(
        r"https?://", re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    )


def test_hostile_text_stays_text(tmp_path):
    folder = fake_runs.caps(tmp_path / "h", prompts=8, hostile=True, conditions=("baseline", "caft"), steps=3)
    described = yaml.safe_load((folder / "experiment.yaml").read_text())
    described |= {
        "question": "<img src=x onerror=alert(1)> {{7*7}} \u202e",
        "name": "</title><script>alert(1)</script>",
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(described))
    page = reports.build(folder).read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; {{7*7}} ⟨U+202E⟩" in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x07]", page)
    shown = {answer[2] for prompt in embedded(page)["prompts"] for answer in prompt["r"]}
    assert "</script><script>document.title='pwned'</script>" in shown
    assert (
        "safe⟨U+202E⟩gnp.exe⟨U+2066⟩ isolate⟨U+2069⟩ ⟨U+200F⟩mark⟨U+200E⟩ nul⟨U+0000⟩ bell⟨U+0007⟩ "
        "lone⟨U+D800⟩surrogate" in shown
    )
    assert any(answer.endswith("more characters in responses.jsonl]") for answer in shown)


def test_hostile_names_are_drawn_as_they_are(tmp_path):
    names = ("baseline", "$\\frac{$", "<b>&\"'", "a|b\\_%#")
    folder = fake_runs.caps(tmp_path / "n", prompts=6, conditions=names[:2], steps=3)
    described = yaml.safe_load((folder / "experiment.yaml").read_text())
    results = (folder / "results.csv").read_text()
    for name in names[2:]:
        described["conditions"][name] = {}
        results += f'caps,"{name.replace(chr(34), chr(34) * 2)}",0,full,in_domain,caps_rate,0.5,6,0\n'
    (folder / "experiment.yaml").write_text(yaml.safe_dump(described))
    (folder / "results.csv").write_text(results)
    page = reports.build(folder).read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in page
    assert "$\\frac{$" in page
    assert r"a\textbar" not in (folder / "tables" / "summary.tex").read_text()
    assert r"a|b\textbackslash{}\_\%\#" in (folder / "tables" / "summary.tex").read_text()
    assert r"a\|b\\_%#" in (folder / "tables" / "summary.md").read_text()


def test_nine_runs_of_200_responses_stay_under_3_mb(tmp_path):
    folder = fake_runs.caps(tmp_path / "big", prompts=100, conditions=("baseline", "caft", "backward_caft"), steps=3)
    for path in folder.glob("*/seed-*/responses.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["response"] = row["response"] + " and so it goes on" * 150
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = reports.build(folder)
    assert page.stat().st_size < 3_000_000
    data = embedded(page.read_text(encoding="utf-8"))
    assert len(data["prompts"]) == 200
    assert data["note"] == ""
    assert all(len(one[2]) > 2_000 for prompt in data["prompts"] for one in prompt["r"] if one[1] is not None)


def test_all_runs_failed(tmp_path):
    failed = [(condition, seed) for condition in ("baseline", "caft") for seed in (0, 1, 2)]
    folder = fake_runs.caps(tmp_path / "f", prompts=4, conditions=("baseline", "caft"), failed=failed)
    (folder / "base" / "DONE.json").unlink()
    (folder / "results.csv").unlink()
    page = reports.build(folder).read_text(encoding="utf-8")
    assert "No condition has a measurement, so there is no answer" in page
    assert page.count("Failed and not averaged") == 6
    assert "the loss is not finite at step 12" in page


def test_analyses_are_shown_and_their_figures_belong_to_the_folder(tmp_path):
    folder = fake_runs.caps(tmp_path / "a", prompts=4, conditions=("baseline",), steps=2)
    with style.figure(2, 2) as drawn:
        drawn.add_subplot().plot([0, 1])
        style.save(drawn, folder / "figures", "mine")
    section = Section(
        "mine",
        "What <i>it</i> is",
        "A summary.",
        (Claim("Is it?", "supported", "Because 3 > 2."),),
        (Table("Numbers", ("what", "value"), (("a", 0.123456), ("b", None), ("c", True)), "A note."),),
        (Figure("mine", "A line"),),
        lead="mine",
    )
    section.save(folder)
    page = reports.build(folder).read_text(encoding="utf-8")
    assert "What &lt;i&gt;it&lt;/i&gt; is" in page
    assert '<span class="pill">supported</span>' in page
    assert "<td>0.12</td>" in page
    assert 'aria-label="A line"' in page
    assert page.count('aria-label="A line"') == 1
    assert "figures/mine.svg" in page
    lead = page[page.index('<section class="lead"') : page.index('<section id="results"')]
    assert "A summary." in lead, "a study answers the question itself"
    assert 'aria-label="A line"' in lead, "and its figure leads"
    assert "a description, not a finding" not in lead
    assert pd.read_csv(folder / "tables" / "mine-1.csv")["value"].tolist()[0] == "0.123456"
    (tmp_path / "secret.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    for name in ("../../secret", "absent"):
        Section("mine", "t", "s", figures=(Figure(name, "c"),)).save(folder)
        with pytest.raises(errors.RunFolderError, match="which figures/ does not have"):
            reports.build(folder)


def test_an_svg_loses_everything_but_its_drawing():
    given = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 1 1"'
        ' onload="x()"><script>x()</script><foreignObject><p>hi</p></foreignObject><style>* {}</style>'
        '<defs><path id="p" d="M0 0"/></defs><a xlink:href="javascript:x()"><path d="M1 1"/></a>'
        '<use xlink:href="#p" style="fill: #0072b2; cursor: url(http://x)"/><use href="http://evil/x.svg#y"/>'
        '<image href="http://evil/x.png"/><path clip-path="url(http://evil)" onclick="x()" d="M2 2"/>'
        '<text style="font: italic bold 8px \'DejaVu Sans\'; text-anchor: middle" x="1">'
        "a &lt; b<tspan>c</tspan>d</text></svg>"
    )
    assert svg.inline(given, "f", 'say "hi" <b>') == (
        '<svg viewBox="0 0 1 1" role="img" aria-label="say &#34;hi&#34; &lt;b&gt;">'
        '<defs><path d="M0 0" id="f-p"></path></defs>'
        '<use href="#f-p" fill="#0072b2"></use><path clip-path="none" d="M2 2"></path>'
        '<text font-size="8" font-weight="bold" font-style="italic" text-anchor="middle" x="1">'
        "a &lt; b<tspan>c</tspan>d</text></svg>"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("<svg", "is not a readable SVG"),
        ("<p/>", "is not an SVG, its root is p"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]><svg xmlns="http://www.w3.org/2000/svg"/>', "declares entities"),
        ("x" * 2_000_001, "more than 2,000,000"),
    ],
)
def test_what_is_no_drawing_is_refused(given, message):
    with pytest.raises(errors.RunFolderError, match=message):
        svg.inline(given, "f", "figure")


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path):
    before = dict(mpl.rcParams)
    with style.figure(2, 2) as drawn:
        style.save(drawn, tmp_path, "x")
    assert dict(mpl.rcParams) == before
    with pytest.raises(errors.RunFolderError, match=r"found '\.\./x'"), style.figure(2, 2) as drawn:
        style.save(drawn, tmp_path, "../x")


def test_every_colour_of_the_figures_has_a_dark_twin():
    from importlib.resources import files

    css = files("tropism.reports").joinpath("templates", "report.css").read_text(encoding="utf-8")
    for colour in (*style.COLOURS, style.INK, style.MUTED):
        assert f'[fill="{colour}"]' in css
        assert f'[stroke="{colour}"]' in css


def test_readings_of_a_guards_sites_are_one_figure():
    rows = [
        {
            "step": 1,
            "loss": 2.0,
            "guard/ablation/resid_post.3/share_removed": 0.1,
            "guard/ablation/resid_post.5/share_removed": 0.3,
            "guard/leak_after": 1e-9,
            "guard/broken": float("nan"),
        }
    ]
    found = training.readings({"caft": [rows]})
    assert [reading.name for reading in found] == ["loss", "guard/ablation/share_removed", "guard/leak_after"]
    steps, values = training.curve([rows], found[1].keys)
    assert steps == [1]
    assert values.tolist() == [[0.2]]
    assert "mean over 2 sites" in found[1].caption


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123, "0.12"),
        (-0.5, "−0.50"),
        (-0.001, "0.00"),
        (float("nan"), "—"),
        (None, "—"),
        (1234.0, "1,234"),
        (0, "0.00"),
    ],
)
def test_rates_are_short(value, shown):
    assert text.rate(value) == shown


def test_numbers_and_signs():
    assert [text.number(x) for x in (0.0004, 0.05, 0.5, 12.3, 1e7, 3)] == [
        "4.0e-04",
        "0.050",
        "0.50",
        "12.3",
        "1.0e+07",
        "3",
    ]
    assert [text.rate(x, signed=True) for x in (0.2, -0.2, 0.001)] == ["+0.20", "−0.20", "0.00"]
    assert text.span(0.1, None) == ""
    assert text.count(1, "seed") == "1 seed"


def test_a_score_that_is_not_finite_is_no_number():
    row = {
        "condition": "a",
        "seed": 0,
        "eval_set": "x",
        "id": 1,
        "prompt": [],
        "response": None,
        "scores": {
            "m": {"value": float("inf"), "unscored": None},
            "n": {"value": None, "unscored": "no digits"},
        },
    }
    data = json.loads(responses.browser([row], [("a", "full", "a")]).text)
    assert data["prompts"][0]["r"] == [[0, 0, None, ["not a finite number", "no digits"]]]


def test_a_figure_of_many_conditions_names_some_and_counts_the_rest(tmp_path):
    runs = {f"c{i:02}": [[{"step": step, "loss": 1.0 + i + step} for step in (1, 2)]] for i in range(20)}
    (loss,) = training.readings(runs)
    svg = training.draw(runs, loss, style.marks(list(runs)), tmp_path, "loss")
    assert "and 4 more" in svg
    assert ("c15" in svg, "c16" in svg) == (True, False)
    few = dict(list(runs.items())[:16])
    assert "more" not in training.draw(few, loss, style.marks(list(few)), tmp_path, "few")


def rows_of(prompts, text="</script><b>"):
    return [
        {
            "condition": "a",
            "seed": 0,
            "eval_set": "x",
            "id": i,
            "prompt": [],
            "response": f"{text} {i * i}",
            "scores": {},
        }
        for i in range(prompts)
    ]


def unpacked(data):
    assert data.packed
    return json.loads(zlib.decompress(base64.b64decode(data.text)))


def test_many_responses_are_packed_and_none_is_lost(monkeypatch):
    arms = [("a", "full", "a")]
    plain = responses.browser(rows_of(40), arms)
    monkeypatch.setattr(responses, "PLAIN", 0)
    assert not plain.packed
    assert unpacked(responses.browser(rows_of(40), arms)) == json.loads(plain.text)


def test_over_budget_responses_are_cut_before_prompts_are_dropped(monkeypatch):
    arms = [("a", "full", "a")]
    monkeypatch.setattr(responses, "PLAIN", 0)
    monkeypatch.setattr(responses, "BUDGET", 7_000)
    noise = "".join(hash_of(i) for i in range(40))
    long = unpacked(
        responses.browser([row | {"response": f"{i}{noise}"[:1000]} for i, row in enumerate(rows_of(3))], arms)
    )
    assert (len(long["prompts"]), long["note"]) == (3, "")
    many = [row | {"response": "".join(hash_of(40 * i + k) for k in range(8))} for i, row in enumerate(rows_of(60))]
    cut = unpacked(responses.browser(many, arms))
    kept = len(cut["prompts"])
    assert 1 < kept < 60
    assert cut["note"].endswith(f"The first {kept} of 60 prompts; responses.jsonl has all of them.")
    assert cut["note"].startswith("Responses are cut at 300 characters here")
    assert all("more characters in responses.jsonl" in prompt["r"][0][2] for prompt in cut["prompts"])


def hash_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_latex_and_markdown_escape_what_they_must():
    assert export.markdown(["a|b"], [["x\ny"]]) == "| a\\|b |\n| --- |\n| x y |\n"
    assert r"50\% \& \$x\_1\$ $-$1" in export.latex(["h"], [["50% & $x_1$ −1"]])


def test_the_terminal_shows_the_answer_and_the_table(built):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        terminal.print_report(load(built.parent), console)
        shown = console.export_text()
    assert "Which guard keeps ALL CAPS out" in shown
    assert "caps rate" in shown
    assert "backward caft" in shown
    assert "• Guards act in training only" in shown


def test_in_a_narrow_terminal_metrics_go_into_further_tables_and_nothing_is_cut(built):
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    loaded = load(built.parent)
    with console.file:
        terminal.print_report(loaded, console)
        shown = console.export_text()
    assert shown.count("condition ") > 1
    assert "…" not in shown[shown.index("condition ") : shown.index("•")]
    assert all(text.words(name) in shown for name in loaded.results["metric"].unique())


@pytest.fixture
def app():
    made = typer.Typer()
    commands.register(made)
    return made


def test_the_report_command_prints_where_it_wrote(built, app):
    result = CliRunner().invoke(app, ["report", str(built.parent)])
    assert result.exit_code == 0
    assert result.output.strip() == str(built)


def test_compare_puts_experiments_below_each_other(built, app, tmp_path):
    other = fake_runs.caps(tmp_path / "other", prompts=4, conditions=("baseline", "caft"), steps=2)
    for target in ("all.csv", "all.md", "all.tex"):
        result = CliRunner().invoke(app, ["compare", str(built.parent), str(other), "--out", str(tmp_path / target)])
        assert result.exit_code == 0
    table = pd.read_csv(tmp_path / "all.csv")
    assert set(table["experiment"]) == {f"caps ({built.parent})", f"caps ({other})"}
    assert r"\toprule" in (tmp_path / "all.tex").read_text()
    with pytest.raises(errors.UsageError, match="two or more different experiment folders"):
        comparing.compare([other, other])
    with pytest.raises(errors.UsageError, match=r"must end in \.csv, \.md, \.tex, found 'x.xlsx'"):
        comparing.write(table, tmp_path / "x.xlsx")


def test_the_environment_names_the_formats_of_figures(tmp_path, monkeypatch):
    def saved(given):
        monkeypatch.setenv("TROPISM_FIGURES", given)
        with style.figure(2, 1) as drawn:
            drawn.subplots().plot([0, 1])
            style.save(drawn, tmp_path / f"of-{given}", "a")
        return {file.name for file in (tmp_path / f"of-{given}").iterdir()}

    assert saved("svg") == saved("") == {"a.svg"}  # the report shows the SVG, so it is always there
    assert saved(" png") == {"a.svg", "a.png"}
    with pytest.raises(
        errors.RunFolderError, match="TROPISM_FIGURES must name formats out of svg, png, pdf, found 'gif'"
    ):
        saved("svg,gif")
