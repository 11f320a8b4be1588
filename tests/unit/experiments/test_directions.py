"""Directions of an experiment: contrasts from files, and files of Tropism and of others, kept in its folder."""

import json

import pytest
import torch

import row_files
import tiny
import tiny_experiment
import tropism as tp
from tropism.directions.validity import validity_path
from tropism.errors import DataError, DirectionsError, SpecError
from tropism.experiments import directions as step
from tropism.experiments import identity, store
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.progress import Progress

CONTRAST = (
    "contrast: {of: responses, source: word_problems, positive: uppercase, negative: plain, size: 12}\n    sites: 1,2"
)
ROWS = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def experiment(tmp_path, directions):
    """The tiny experiment with these directions in the place of its own."""
    return Experiment.load(tiny_experiment.write(tmp_path, (CONTRAST, directions)))


def no_side(named, model):
    raise AssertionError(f"no contrast of models is read here, and {named} was asked for")


SIDES = step.Sides(tiny.model, no_side)


def prepared(tmp_path, directions, said=None):
    """The directions `caps`, made or read in the folder `out`."""
    e = experiment(tmp_path, directions)
    folder = store.Folder(tmp_path / "out")
    return step.prepare(e, folder, {}, tiny.model, tiny.tokenizer(), said or Said(), SIDES)["caps"]


def contrast(tmp_path, text):
    e = experiment(tmp_path, f"contrast: {text}")
    return step.contrast_of(e.directions["caps"].contrast, e)


PAIRS = [{"question": f"q {i}", "chosen": f"A {i}", "rejected": f"b {i}"} for i in range(12)]


def test_pairs_of_a_file_are_a_contrast(tmp_path):
    source = row_files.write(tmp_path / "pairs.csv", PAIRS)
    columns = "columns: {positive: chosen, negative: rejected}"
    found = contrast(
        tmp_path, f"{{of: responses, source: {source}, {columns}, transform: {{system_prompt: {{text: Be brief.}}}}}}"
    )
    assert [chat[-1]["content"] for chat in found.positive] == [row["chosen"] for row in PAIRS]
    assert {chat[0]["content"] for chat in (*found.positive, *found.negative)} == {"Be brief."}
    part = contrast(tmp_path, f"{{of: responses, source: {source}, {columns}, split: 'train[:8]'}}")
    assert len(part) == 8


def test_transforms_make_the_sides_of_a_file_whose_columns_have_other_names(tmp_path):
    rows = [{"q": f"q {i}", "a": f"a {i}", "kind": "x"} for i in range(12)]
    source = row_files.write(tmp_path / "rows.jsonl", rows)
    named = f"source: {source}, columns: {{prompt: q, completion: a}}"
    found = contrast(tmp_path, f"{{of: responses, {named}, positive: uppercase, negative: plain}}")
    assert found.positive[3][-1]["content"] == "A 3"
    asked = contrast(tmp_path, f"{{of: system_prompts, {named}, promote: Shout., suppress: Whisper.}}")
    assert [m["content"] for m in asked.positive[0]] == ["Shout.", "q 0"]


def test_a_file_without_pairs_and_without_transforms_is_no_contrast(tmp_path):
    source = row_files.write(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": "a"}] * 12)
    with pytest.raises(DataError, match="columns maps completion to 'positive', which the row does not have"):
        contrast(tmp_path, f"{{of: responses, source: {source}}}")


def test_a_source_without_responses_is_no_contrast_of_responses(tmp_path):
    with pytest.raises(
        DataError, match="a contrast of responses needs rows with a response, and 'everyday_questions/0' has none"
    ):
        contrast(tmp_path, "{of: responses, source: everyday_questions, positive: uppercase, negative: plain}")


def test_the_content_of_a_contrast_s_file_is_in_its_identity(tmp_path):
    source = row_files.write(tmp_path / "pairs.csv", PAIRS)
    columns = "columns: {positive: chosen, negative: rejected}"
    e = experiment(tmp_path, f"contrast: {{of: responses, source: {source}, {columns}}}")
    before = identity.directions_identity(e, {}, "caps")
    assert before == identity.directions_identity(e, {}, "caps")
    row_files.write(source, PAIRS[::-1])
    assert before != identity.directions_identity(e, {}, "caps")


def own_file(tmp_path, **facts):
    return tp.Directions({tp.Site(layer): (layer + 1) * ROWS for layer in (0, 1, 2)}, facts).save(
        tmp_path / "own.safetensors"
    )


def test_a_file_is_copied_into_the_folder_with_its_validity(tmp_path):
    file = own_file(tmp_path)
    report = {"name": "own", "sites": [], "held_out": {}}
    found = prepared(tmp_path, f"file: {file}")
    kept = tmp_path / "out" / "directions" / "caps.safetensors"
    assert torch.equal(tp.Directions.load(kept).vectors[tp.Site(2)], 3 * ROWS)
    assert found.provenance["model"]["config_hash"]
    assert not validity_path(kept).exists()
    del report
    file.rename(tmp_path / "gone")
    (tmp_path / "gone").rename(file)
    assert torch.equal(prepared(tmp_path, f"file: {file}").vectors[tp.Site(0)], ROWS)


@pytest.fixture
def validated(tmp_path):
    """Directions that were found and validated, by the tiny experiment itself, with their report beside them."""
    first = tmp_path / "first"
    first.mkdir()
    e = Experiment.load(tiny_experiment.write(first))
    step.prepare(e, store.Folder(first / "out"), {}, tiny.model, tiny.tokenizer(), Said(), SIDES)
    return first / "out" / "directions" / "caps.safetensors"


def test_the_validity_report_goes_with_all_of_a_file_and_not_with_a_part_of_it(tmp_path, validated):
    kept = tmp_path / "out" / "directions" / "caps.safetensors"
    prepared(tmp_path, f"file: {validated}")
    assert json.loads(validity_path(kept).read_text()) == json.loads(validity_path(validated).read_text())
    said = Said()
    part = prepared(tmp_path, f"{{file: {validated}, sites: '2'}}", said)
    assert part.sites == (tp.Site(2),)
    assert not validity_path(kept).exists()
    assert any("the validity report is not kept" in line for line in said.lines)


def test_strict_needs_a_report_that_speaks_for_the_directions(tmp_path, validated):
    kept = tmp_path / "out" / "directions" / "caps.safetensors"
    with pytest.raises(
        DirectionsError, match=r"need a validity report \(strict: true\), and there is none beside the file"
    ):
        prepared(tmp_path, f"{{file: {own_file(tmp_path)}, strict: true}}")
    with pytest.raises(DirectionsError, match="only some are read"):
        prepared(tmp_path, f"{{file: {validated}, sites: '2', strict: true}}")
    report = json.loads(validity_path(validated).read_text())
    for site in report["sites"]:
        site["auc"] = 0.1
    assert not kept.exists()


def test_sites_and_components_are_of_a_file_too(tmp_path):
    file = own_file(tmp_path)
    found = prepared(tmp_path, f"{{file: {file}, sites: '0,2', components: [2, 0]}}")
    assert found.sites == (tp.Site(0), tp.Site(2))
    assert torch.equal(found.vectors[tp.Site(2)], 3 * ROWS[[2, 0]])
    found = prepared(tmp_path, f"{{file: {file}, components: {{1: [1]}}}}")
    assert found.sites == (tp.Site(1),)
    assert torch.equal(found.vectors[tp.Site(1)], 2 * ROWS[[1]])
    with pytest.raises(
        DirectionsError, match="sites: there are no directions at resid_post.3; there are at resid_post.0"
    ):
        prepared(tmp_path, f"{{file: {file}, sites: '3'}}")


def test_components_are_of_a_contrast_too(tmp_path):
    both = prepared(tmp_path, CONTRAST + "\n    finder: {pca: {k: 3}}")
    found = prepared(tmp_path, CONTRAST + "\n    finder: {pca: {k: 3}}\n    components: [2]")
    for site in (tp.Site(1), tp.Site(2)):
        torch.testing.assert_close(found.vectors[site], both.vectors[site][[2]])
    assert found.provenance["components"] == [2]


def test_files_of_others_are_read_as_a_file(tmp_path):
    torch.save({1: ROWS.numpy(), 2: 2 * ROWS.numpy()}, tmp_path / "pca.pt")
    found = prepared(tmp_path, f"file: {tmp_path / 'pca.pt'}")
    assert torch.equal(found.vectors[tp.Site(2)], 2 * ROWS)
    assert found.provenance["imported"]["file"] == "pca.pt"
    torch.save({"directions": {1: ROWS[0]}, "others": {1: ROWS[1]}}, tmp_path / "nested.pt")
    nested = tmp_path / "nested.pt"
    assert torch.equal(
        prepared(tmp_path, f"{{file: {nested}, reading: {{key: others}}}}").vectors[tp.Site(1)][0], ROWS[1]
    )
    with pytest.raises(DirectionsError, match="holds directions, others; say which with Reading.key"):
        prepared(tmp_path, f"file: {nested}")


def test_directions_of_another_width_are_refused(tmp_path):
    torch.save({1: torch.ones(2, 7)}, tmp_path / "other.pt")
    with pytest.raises(DirectionsError, match="they belong to another model"):
        prepared(tmp_path, f"file: {tmp_path / 'other.pt'}")


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ("{{file: {file}, finder: pca}}", "directions.caps.finder: says how directions are found and validated, .* found 'pca'; drop it"),
        ("{{file: {file}, positions: all}}", "directions.caps.positions: says how directions are found"),
        ("{{file: {file}, behaviour: caps_rate}}", "directions.caps.behaviour: says how directions are found"),
        ("{{file: {file}, reading: {{side: rows}}}}", "directions.caps.reading: option 'reading' has no option 'side'"),
        ("{{file: {file}, reading: {{layer: one}}}}", "directions.caps.reading: .*layer"),
        ("{{file: {file}, reading: {{components: [0]}}}}", "reading.components: is an option of the directions themselves"),
        ("{{file: [{file}, nowhere.npy]}}", "directions.caps.file: no such file: 'nowhere.npy'"),
        ("{{contrast: {{of: responses, source: word_problems}}, reading: {{layer: 1}}}}", "directions.caps.reading: applies only to directions that are read from a file"),
        ("contrast: {{of: responses, source: word_problems, promote: x}}", "contrast.promote: does nothing here, found 'x'"),
        ("contrast: {{of: system_prompts, source: word_problems, promote: x, suppress: y, positive: plain}}", "contrast.positive: does nothing here"),
        ("contrast: {{of: data, positive: held_out, negative: train, columns: {{prompt: q}}}}", "contrast.columns: does nothing here"),
        ("contrast: {{of: data, positive: held_out, negative: train, seed: 3}}", "contrast.seed: does nothing here, found 3"),
        ("contrast: {{of: responses, source: word_problems, columns: {{prompt: q}}}}", "does not take 'columns'"),
        ("contrast: {{of: responses, source: word_problems, split: dev}}", "has no split 'dev'"),
        ("contrast: {{of: responses, source: word_problems, transform: shout}}", "contrast.transform: unknown transform 'shout'"),
    ],
)  # fmt: skip
def test_what_does_nothing_is_refused(tmp_path, directions, message):
    with pytest.raises(SpecError, match=message):
        experiment(tmp_path, directions.format(file=own_file(tmp_path)))


def test_directions_of_one_contrast_at_other_sites_share_its_passes(tmp_path):
    """And are those that each would find alone, to the bit."""
    elsewhere = CONTRAST.replace("sites: 1,2", "sites: all")

    def found(directions, out):
        model, passes = tiny.model(), []
        model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(1))
        folder = store.Folder(tmp_path / out)
        e = experiment(tmp_path, directions)
        return step.prepare(e, folder, {}, lambda: model, tiny.tokenizer(), Said(), SIDES), len(passes)

    one, passes = found(CONTRAST, "one")
    other, _ = found(elsewhere, "other")
    both, together = found(f"{CONTRAST}\n  wider:\n    {elsewhere}", "both")
    assert together < 1.5 * passes
    for alone, name in ((one, "caps"), (other, "wider")):
        assert both[name].sites == alone["caps"].sites
        assert all((both[name].vectors[site] == alone["caps"].vectors[site]).all() for site in both[name].sites)
