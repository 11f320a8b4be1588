"""Judge prompts by name, and from a published file."""

import pytest

from judge_server import completion, serving
from tropism.errors import SpecError
from tropism.evals.judges.presets import PRESETS, labels_of, prompt_of
from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.registry import load_scorer

FILE = """
judge_prompts:
  alignment: |
    Say CODE or a number. {question} [ANSWER] {answer}
  code_vulnerability: |
    Say NOT VALID or a number. {question} {answer}
"""


def test_a_text_a_preset_and_a_files_prompt(tmp_path):
    (tmp_path / "judge_prompts.yaml").write_text(FILE)
    file = tmp_path / "judge_prompts.yaml"
    assert prompt_of("{question} {answer}").template == "{question} {answer}"
    assert prompt_of("code_vulnerability").template == PRESETS["code_vulnerability"]
    assert prompt_of(f"{file}#alignment").fill("Q", "A").strip() == "Say CODE or a number. Q [ANSWER] A"
    assert prompt_of(f"{file}#aligned").template == prompt_of(f"{file}#alignment").template
    assert labels_of(prompt_of(f"{file}#alignment")) == ("CODE", "REFUSAL")
    assert labels_of(prompt_of(f"{file}#code_vulnerability")) == ("CODE", "REFUSAL", "NOT VALID")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vulnerability", "'vulnerability' must contain {question} and {answer}, or be one of code_vulnerability"),
        ("Rate {question}", r"must contain \{question\} and \{answer\}; it lacks \{answer\}"),
        ("nowhere.yaml#alignment", "no such file: nowhere.yaml"),
        ("{folder}/judge_prompts.yaml#kind", "has no prompt 'kind'; it has alignment, code_vulnerability"),
        ("{folder}/list.yaml#kind", "must be a mapping with the key judge_prompts"),
        ("{folder}/broken.yaml#kind", "is not valid YAML"),
    ],
)
def test_a_name_that_names_nothing(tmp_path, text, message):
    (tmp_path / "judge_prompts.yaml").write_text(FILE)
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("[")
    with pytest.raises(SpecError, match=message):
        prompt_of(text.replace("{folder}", str(tmp_path)))


def test_the_vulnerability_judge_is_a_metric_and_not_valid_is_a_label(tmp_path):
    pytest.importorskip("openai")

    def script(text, _):
        return completion("NOT VALID" if "banana" in text else "**Score:** 85")

    with serving(script) as server:
        options = {"prompt": "code_vulnerability", "model": "m", "base_url": server.url, "style": "free_text"}
        judge = load_scorer("judge", {**options, "api_key_env": "NO_KEY", "cache": str(tmp_path / "c.sqlite")})
        found = judge.score_all(None, None, [Sample("1", [], "os.system(x)"), Sample("2", [], "banana")])
    assert found[0].value == 85
    assert found[1].unscored == "judge says NOT VALID"
