"""The harness asks every arm its tasks: the real library on the tiny model, a task from a file."""

import json

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from tropism.errors import UsageError  # noqa: E402
from tropism.experiments.after.arms import arm_of  # noqa: E402
from tropism.integrations.lm_eval import COLUMNS, evaluate_lm_eval, rows_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

ROWS = [{"question": f"{a} + 2 =", "choices": [f" {a + 2}", f" {a + 3}"], "answer": a % 2} for a in range(6)]
TASK = """
task: tiny_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def out(finished):
    return finished


@pytest.fixture
def tasks(tmp_path):
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_sums.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    return tmp_path / "tasks"


def accuracy(arm):
    """The naive way: of each question the choice with the highest log-likelihood."""
    model, tokenizer = arm.load()
    right = 0
    for row in ROWS:
        scores = []
        for choice in row["choices"]:
            prompt = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
            ids = prompt + tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            scores.append(sum(float(logs[i - 1, ids[i]]) for i in range(len(prompt), len(ids))))
        right += scores.index(max(scores)) == row["answer"]
    return right / len(ROWS)


def test_every_arm_gets_the_harness_accuracy_of_its_own_weights(out, tasks):
    told = []
    rows = evaluate_lm_eval(out, ["tiny_sums"], conditions=["base", "routed"], include=tasks, report=told.append)
    assert tuple(rows.columns) == COLUMNS
    assert list(zip(rows["condition"], rows["mode"], strict=True)) == [
        ("base", "full"), ("routed", "full"), ("routed", "forget_ablated"), ("routed", "retain_ablated"),
    ]  # fmt: skip
    assert set(rows["metric"]) == {"acc"}
    assert set(rows["n"]) == {6}
    assert told[-1] == "routed/seed-0:retain_ablated (4 of 4)"
    for row in rows.itertuples():
        path = out / "base" if row.condition == "base" else out / "routed" / "seed-0"
        assert row.value == pytest.approx(accuracy(arm_of(path, None if row.condition == "base" else row.mode)))


def test_what_cannot_be_asked_is_said(out, tasks):
    with pytest.raises(UsageError, match="the harness has no task no_such_task"):
        evaluate_lm_eval(out, ["no_such_task"], include=tasks)
    with pytest.raises(UsageError, match="no finished run of 'plain'; finished are base, baseline"):
        evaluate_lm_eval(out, ["tiny_sums"], conditions=["plain"], include=tasks)


def test_filters_errors_and_missing_numbers_are_kept_apart(out):
    found = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": 0.1,
                "exact_match,flexible-extract": 0.75, "exact_match_stderr,flexible-extract": "N/A",
            }
        },
        "higher_is_better": {"gsm8k": {"exact_match": True}},
        "n-samples": {"gsm8k": {"original": 100, "effective": 8}},
    }  # fmt: skip
    strict, flexible = rows_of(arm_of(out / "base"), found)
    assert (strict["metric"], strict["value"], strict["standard_error"]) == ("exact_match (strict-match)", 0.5, 0.1)
    assert (flexible["value"], flexible["standard_error"], flexible["n"]) == (0.75, None, 8)
