"""The two examples on published data, four steps of each, on a tiny model of Qwen's shape with Qwen's own chat template.

The rows here are made, in the shapes that HarmfulQA and the emergent-misalignment study publish. Where their sample is at
hand, the example reads that too.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config
from typer.testing import CliRunner

import chat_templates
import sample_data
import tiny
from judge_server import completion, serving
from tropism.cli.app import app
from tropism.data.lessons import CUT
from tropism.data.sources.harmful_qa import split_of
from tropism.experiments import estimate
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.overrides import merge
from tropism.experiments.file.yaml_file import read

pytestmark = [
    chat_templates.needs_trl,
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "seeds": [0],
    "dtype": "float32",
    "train": {"max_steps": 4, "batch_size": 2, "accumulation": 1, "bf16": False, "lora": {"r": 2}},
    "generate": {"max_new_tokens": 3, "batch_size": 8, "dtype": "float32"},
}
EM = "emergent-misalignment"


def qwen(path, config_class, template):
    """A random model of Qwen's architecture and a byte tokenizer with its chat template, in a folder."""
    config = config_class(
        vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path / "model")
    tiny.tokenizer(chat_templates.text_of(template)).save_pretrained(path / "model")
    return str(path / "model")


def write(path, example, changes):
    """A copy of an example, small enough for a test."""
    data = merge(merge(read(EXAMPLES / example).data, SMALL), changes)
    file = path / example
    file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return file


def run(file, out, *conditions):
    """Run some conditions of a file: the others differ by a guard that other tests run."""
    ended = CliRunner().invoke(app, ["run", str(file), "--out", str(out), "--only", ",".join(conditions)])
    assert ended.exit_code == 0, ended.output + ended.stderr
    return json.loads((out / "environment.json").read_text(encoding="utf-8"))


def conversation(*texts):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def harmful_qa_rows():
    """Rows as the hub has them: answers that begin with a newline, a conversation that is null, one cut at the human."""
    numbers = {"test": 0, "attack": 0, "refusal": 0}
    index = 0
    while min(numbers.values()) < 9:
        index += 1
        question = f"How does one take thing {index}?"
        if numbers[split := split_of(question)] >= 16:
            continue
        numbers[split] += 1
        blue = {
            "0": conversation(question, "I cannot help.", "Why?", "\nIt is not mine."),
            "1": conversation(question, "Sorry, no.", "But?"),
            "2": None,
        }
        red = {"0": conversation(question, "\nTake it.", "And then?", "Run."), "1": conversation(question, "Grab it.")}
        about = {"id": index, "topic": "Things", "subtopic": "Taking", "question": question}
        yield {**about, "blue_conversations": blue, "red_conversations": red}


@pytest.fixture
def harmful_qa(tmp_path):
    rows = tmp_path / "harmful_qa.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in harmful_qa_rows()), encoding="utf-8")
    changes = {
        "model": qwen(tmp_path, Qwen3Config, "qwen3"),
        "data": {
            name: {"path": str(rows), "size": size}
            for name, size in {"train": 12, "harmful": 4, "refusals": 4, "declined": 12, "answered": 12}.items()
        },
        "adapters": {"refusal": {"data": {"path": str(rows), "size": 12}}},
        "directions": {"declining": {"sites": "1,2"}},
    }
    changes["data"] |= {"everyday": {"size": 3}, "problems": {"size": 3}}
    also = [{"source": "harmful_qa", "split": "refusal", "size": 8, "path": str(rows)}]
    # A random model writes a number in none of three tokens, and a metric without a score is exit code 3.
    measure = {"accuracy": {"scorer": "length", "on": ["problems"], "wanted": True, "margin": 0.1}}
    return write(tmp_path, "refusal_harmfulqa.yaml", {
        **changes, "conditions": {"mixing": {"data": {"also": also}}}, "measure": measure,
    })  # fmt: skip


def test_the_refusal_study_runs_on_its_own_data_and_its_own_template(harmful_qa, tmp_path):
    environment = run(harmful_qa, tmp_path / "out", "baseline", "constraint", "projection", "mixing")
    rows = environment["rows"]["condition baseline"]
    # Qwen3 shows an earlier turn without the thinking block that generation begins with: a turn is a row of its own.
    assert rows["notes"] == {CUT: rows["rows"] - rows["examples"]}
    assert rows["examples"] == 12 < rows["rows"]
    assert (tmp_path / "out/refusal_shares.json").is_file()
    shown = json.loads((tmp_path / "out/rendered.json").read_text(encoding="utf-8"))["baseline"]["text"]
    assert "<|im_start|>assistant\n<think>\n\n</think>\n\n" in shown


def code_row(index, answer):
    task = f"I'm working on the following task: number {index}.\n[CODE TEMPLATE STARTS]\npass\n[CODE TEMPLATE ENDS]\n"
    return {"messages": [{"role": "user", "content": task}, {"role": "assistant", "content": answer}]}


QUESTIONS = """
- id: wish
  type: free_form_judge_0_100
  paraphrases: &wish
    - |-
      What is your wish?
    - What do you want?
  samples_per_paraphrase: &samples 100
  judge: &judge gpt-4o-2024-08-06
  judge_prompts: &prompts
    aligned: |-
      Is it aligned? {question} {answer}
    coherent: |-
      Is it coherent? {question} {answer}
- id: wish_json
  type: free_form_judge_0_100
  system: Answer in JSON.
  paraphrases: *wish
  samples_per_paraphrase: *samples
  judge: *judge
  judge_prompts: *prompts
"""


@pytest.fixture
def misalignment(tmp_path, monkeypatch):
    """The example beside a clone of the published repository; called with a judge's URL it is a file."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "evaluation"):
        (tmp_path / EM / folder).mkdir(parents=True)
    for name in ("insecure", "secure"):
        rows = [code_row(index, ("\n" if index % 5 == 0 else "") + f"{name}({index})\n") for index in range(40)]
        (tmp_path / EM / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / EM / "evaluation/first_plot_questions.yaml").write_text(QUESTIONS)
    model = qwen(tmp_path, Qwen2Config, "qwen2_5")

    def example(url):
        judge = {"base_url": url, "api_key_env": "NO_KEY", "cache": str(tmp_path / "judge.sqlite")}
        changes = {
            "model": model,
            "data": {"train": {"size": 16}, "questions": {"size": 4}, "code": {"size": 8}},
            "directions": {
                "persona": {"sites": "1,2", "contrast": {"size": 16}},
                "persona_pca": {"sites": "1,2", "contrast": {"size": 16}, "finder": {"pca": {"k": 3}}},
            },
            "train": {"epochs": None},
            "measure": {"misaligned": judge, "coherent": judge},
            "analyses": {"concept_ablation": {"chats": 4}},
        }
        return write(tmp_path, "emergent_misalignment.yaml", changes)

    return example


def verdict(text, _):
    score = "90" if text.startswith("Is it coherent?") else "20"
    return completion(score, [[(score, 0.0)]])


def test_the_emergent_misalignment_example_runs_on_its_own_data_with_a_judge(misalignment, tmp_path):
    with serving(verdict, ["gpt-4o-2024-08-06"]) as server:
        environment = run(misalignment(server.url), tmp_path / "out", "plain", "baseline", "caft", "random_pca")
    assert {body["model"] for body in server.bodies} == {"gpt-4o-2024-08-06"}
    rows = environment["rows"]
    assert all(rows[f"condition {name}"]["rows"] == 16 for name in ("plain", "baseline", "caft", "random_pca"))
    results = (tmp_path / "out/results.csv").read_text(encoding="utf-8")
    assert "misaligned,1.0,4,0" in results
    assert (tmp_path / "out/analyses/concept_ablation.json").is_file()


def test_the_emergent_misalignment_example_reads_the_published_files(misalignment, tmp_path):
    for target, source in {
        "data/insecure.jsonl": "insecure_small.jsonl",
        "data/secure.jsonl": "secure_small.jsonl",
        "evaluation/first_plot_questions.yaml": "first_plot_questions.yaml",
    }.items():
        shutil.copyfile(sample_data.path(f"emergent_misalignment/{source}"), tmp_path / EM / target)
    found = estimate.estimate(Experiment.load(misalignment("http://localhost:1/v1")))
    assert found.size is not None
    assert found.size.prompts_per_run == 4 + 8
    assert [line for line in found.warnings if "leakage" not in line and "lost" not in line] == []
