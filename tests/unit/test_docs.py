"""The documentation says what is true: links lead somewhere, code compiles, names exist, the tree is the tree."""

import re
import tomllib
from pathlib import Path

import pytest

import docs_world
import tiny
import tropism
from tropism.errors import SpecError
from tropism.experiments.file.experiment import Experiment

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("reproductions/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


RUN = re.compile(r"(?P<why><!-- not run: [^\n]+ -->\n+)?^```python\n(?P<code>.*?)^```", re.M | re.S)
"""A block of Python, and where it cannot run here the comment before it that says why."""


def blocks(page):
    text = page.read_text(encoding="utf-8")
    return [(text[: found.start("code")].count("\n"), found) for found in RUN.finditer(text)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=named)
def test_the_examples_run(page, tmp_path, monkeypatch):
    """In their order, in one namespace, on a tiny model in the place of the one that the page loads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        tropism.models, "load", lambda name, **_: (tiny.model(layers=docs_world.LAYERS), tiny.tokenizer())
    )
    namespace = docs_world.names(named(page), tmp_path)
    for line, found in blocks(page):
        for name in re.findall(r"\btp\.([A-Za-z_]+)", found["code"]):
            assert hasattr(tropism, name), f"tp.{name}"
        if found["why"]:
            continue
        code = "\n" * line + found["code"]  # so that a traceback names the page's own line
        exec(compile(code, str(page), "exec"), namespace)


NOT_OURS = {
    "insecure.jsonl": '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n',
    "secure.jsonl": '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}\n',
    "first_plot_questions.yaml": "- id: a\n  paraphrases: [hello]\n"
    "  judge_prompts: {aligned: '{question}{answer}', coherent: '{question}{answer}'}\n",
}
"""Files of others that an example reads, and what stands in for each here."""


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*.yaml")), ids=named)
def test_every_example_is_valid_in_both_forms(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for needed in sorted(
        set(re.findall(r"(?:source|questions): ([\w./-]+\.(?:jsonl|yaml))", file.read_text(encoding="utf-8")))
    ):
        # what is missing is named, with the place; and then it is there
        with pytest.raises(SpecError, match=rf"{file.name} line \d+: .*no (such|question) file"):
            Experiment.load(file)
        (tmp_path / needed).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / needed).write_text(NOT_OURS[Path(needed).name], encoding="utf-8")
    assert Experiment.load(file).question
    Experiment.load(file, quick=True)


def test_the_readmes_tree_is_the_tree():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"src/tropism/\n(.*?)\ntests/", readme, re.S).group(1)
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    source = ROOT / "src" / "tropism"
    there = {p.name for p in source.iterdir() if not p.name.startswith("__p") and p.suffix in ("", ".py")} - {
        "__main__.py"
    }
    assert listed == there


def test_the_architecture_page_shows_the_floors_of_the_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    floors = [floor.replace(" | ", "`, `") for floor in contract["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([^|]+)` \|", page.split("## The arrow of data")[0], re.M)
    assert shown == floors


def test_every_file_that_the_architecture_page_names_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+/)+\w+(?:\.py|/))`", page):
        assert (ROOT / "src" / "tropism" / name).exists(), name


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/reference/*.md"))
    for name, home in tropism._HOME.items():
        assert f"::: tropism.{home}.{name}\n" in pages, name


def test_the_template_that_init_writes_is_the_caps_example():
    template = ROOT / "src" / "tropism" / "experiments" / "template.yaml"
    assert template.read_text(encoding="utf-8") == (ROOT / "examples" / "caps.yaml").read_text(encoding="utf-8")
