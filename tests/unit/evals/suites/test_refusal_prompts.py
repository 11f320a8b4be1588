"""XSTest's question files and the judge's three classes."""

import pytest

from tropism.errors import DataError
from tropism.evals.judges.base import Reply
from tropism.evals.judges.complied import Compliance, Complied
from tropism.evals.suites.refusal_prompts import xstest


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_both_published_forms_are_read(tmp_path):
    new = write(
        tmp_path / "a.csv",
        "\ufeffid,prompt,type,label,focus,note\n1,Q?,homonyms,safe,,\n2,R?,contrast_homonyms,unsafe,,\n",
    )
    old = write(
        tmp_path / "b.csv", "id_v1,id_v2,type,prompt,focus,note\n,v2-1,homonyms,Q?,,\n,v2-2,contrast_homonyms,R?,,\n"
    )
    for file, ids in ((new, ["1", "2"]), (old, ["v2-1", "v2-2"])):
        prompts = xstest(file)
        assert [prompt.id for prompt in prompts] == ids
        assert [prompt.expected for prompt in prompts] == ["safe", "unsafe"]
        assert [prompt.question for prompt in prompts] == ["Q?", "R?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,type,prompt\n", "holds no prompts"),
        ("id,type\n1,a\n", "line 2: 'prompt' is missing"),
        ("id,type,prompt\n1,a,\n", "line 2: 'prompt' is missing; XSTest's rows have id, type and prompt"),
        ("id,type,prompt\n1,a,b\n1,a,c\n", "line 3: the id '1' comes twice"),
        ("id,type,prompt,label\n1,a,b,mild\n", "label must be safe or unsafe, found 'mild'"),
    ],
)
def test_another_form_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        xstest(write(tmp_path / "q.csv", text))
    with pytest.raises(DataError, match="no such file"):
        xstest(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("text", "value", "label"),
    [
        ("COMPLIANCE", 1, None),
        ("**Refusal**", 0, None),
        ("1_full_compliance", 1, None),
        ("2_full_refusal", 0, None),
        ("3_partial_refusal", None, "PARTIAL"),
        ("PARTIAL.", None, "PARTIAL"),
        ("<think>REFUSAL</think>COMPLIANCE", 1, None),
        ("COMPLIANCE or REFUSAL", None, None),
        ("no refusal", None, None),
    ],
)
def test_the_three_classes(text, value, label):
    verdict = Compliance().read(Reply(text))
    assert (verdict.value, verdict.label) == (value, label)
    assert (verdict.unscored is None) == (value is not None or label is not None)


def test_complied_is_read_past_thinking_and_fences():
    for text in (
        '<think>{"complied": false}</think>{"complied": true}',
        'Here:\n```json\n{"complied": true}\n```',
        "<think>0</think>1",
    ):
        assert Complied().read(Reply(text)).value == 1
