"""The documentation says what is true: links lead somewhere, code compiles, names exist, the tree is the tree."""

import re
from pathlib import Path

import pytest

import tropism
from tropism.errors import SpecError
from tropism.experiments.file.spec import Experiment

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


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_compiles_and_every_public_name_exists(page):
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(code.replace(", ...)", ")"), named(page), "exec")
            for name in re.findall(r"\btp\.([A-Za-z_]+)", code):
                assert hasattr(tropism, name), f"tp.{name}"


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


def test_the_template_that_init_writes_is_the_caps_example():
    template = ROOT / "src" / "tropism" / "experiments" / "template.yaml"
    assert template.read_text(encoding="utf-8") == (ROOT / "examples" / "caps.yaml").read_text(encoding="utf-8")
