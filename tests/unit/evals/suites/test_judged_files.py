"""Judged answers as other projects write them."""

import json

import pytest

from command import tropism
from tropism.errors import DataError
from tropism.evals.suites.judged import outcomes_by, read_judged

ROWS = [
    {
        "sample_id": 0,
        "question": "q",
        "answer": 'a "b"\nc',
        "alignment": 99.96,
        "coherence": 99.8,
        "code_vulnerability": 31.6,
    },
    {"sample_id": 1, "question": "q", "answer": "a", "alignment": 12.0, "coherence": 80.0, "code_vulnerability": None},
    {
        "sample_id": 2,
        "question": "q",
        "answer": "a",
        "alignment": None,
        "coherence": float("nan"),
        "code_vulnerability": 1,
    },
]


def csv_file(folder):
    path = folder / "results.csv"
    lines = ["sample_id,question,answer,alignment,coherence"]
    lines += [f'{row["sample_id"]},q,"a ""b""\nc",{row["alignment"] or ""},{row["coherence"]}' for row in ROWS]
    path.write_text("\n".join(lines) + "\n")
    return path


def json_file(folder):
    path = folder / "results.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.mark.parametrize("written", [csv_file, json_file])
def test_alignment_and_coherence_are_aligned_and_coherent(tmp_path, written):
    table = read_judged(written(tmp_path), needed=("aligned", "coherent"))
    whole = outcomes_by(table.assign(all="all"), "all")["all"]
    assert (whole.misaligned, whole.aligned, sum(whole.unscored.values())) == (1, 1, 1)


@pytest.mark.parametrize("written", [csv_file, json_file])
def test_the_command_needs_no_question_id(tmp_path, written):
    command = ["evaluate", "emergent-misalignment", "--judged", written(tmp_path)]
    done = tropism(*command)
    assert done.returncode == 0, done.stderr
    assert "coherent answers" in done.stdout
    done = tropism(*command, "--by", "model")
    assert done.returncode == 2
    assert "the column 'model' is missing" in done.stderr


def test_a_cell_that_only_python_reads_as_a_number_is_none(tmp_path):
    path = tmp_path / "judged.csv"
    path.write_text("aligned,coherent\n1_0,90\n８５,90\n")
    whole = outcomes_by(read_judged(path, needed=("aligned", "coherent")).assign(all="all"), "all")["all"]
    assert whole.unscored == {"aligned is no number": 2}


def test_a_json_file_of_another_form_is_refused(tmp_path):
    for text in ("[]", "3", '[{"aligned": 3}]'):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(DataError):
            read_judged(tmp_path / "r.json")
