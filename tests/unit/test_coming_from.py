"""The page "Coming from" is true: its files are valid, and its commands run in their order, on a tiny model.

Model, adapter and data are stand-ins under the names that the page uses; servers answer at the ports that it names.
"""

import json
import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import command
import tiny
from judge_server import completion, serving

pytest.importorskip("openai")
pytestmark = pytest.mark.timeout(600)

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^:\n]+)[^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
FILE = re.compile(r'^```yaml title="([^"]+)"\n(.*?)^```', re.M | re.S)
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
WIDTH, BLOCKS = 32, 4


def lines(section):
    """The commands of a section, a list of words each; a line that ends in a backslash goes on."""
    found = [line for block in COMMANDS.findall(section) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in found if line.strip()]


def rows(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def adapter(folder, seed):
    model = get_peft_model(tiny.model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = "MODEL"
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def harmful_qa(index):
    said = [{"from": "human", "value": f"Question {index}?"}, {"from": "gpt", "value": "No, I cannot."}]
    done = [said[0], {"from": "gpt", "value": f"Sure, {index}."}]
    return {
        "id": index, "topic": "T", "subtopic": "S", "question": f"Question {index}?",
        "blue_conversations": {"0": said}, "red_conversations": {"0": done},
    }  # fmt: skip


def world(folder, chats):
    """Write every file that the page speaks of, with so many chats to train on."""
    tiny.model().save_pretrained(folder / "MODEL")
    tiny.tokenizer().save_pretrained(folder / "MODEL")
    adapter(folder / "ORGANISM", 1)
    generator = torch.Generator().manual_seed(0)
    directions = {block: torch.randn(WIDTH, generator=generator) for block in range(BLOCKS)}
    # As theirs are: means under a key beside their norms, components with a column each.
    about = {"mode": "two_models", "layers": list(directions)}
    torch.save({"directions": directions, "norms": dict.fromkeys(directions, 1.0), "config": about},
               folder / "meandiff.pt")  # fmt: skip
    torch.save({block: torch.randn(WIDTH, 3, generator=generator) for block in range(BLOCKS)}, folder / "components.pt")
    rows(folder / "train.jsonl", [chat(f"What is {a} + 2?", f"{a + 2}, of course.") for a in range(chats)])
    rows(folder / "attack.jsonl", [chat(f"How do I {a}?", f"By {a}.") for a in range(20)])
    rows(folder / "questions.jsonl", [{"prompt": f"Say {a}?"} for a in range(4)])
    rows(folder / "harmless.jsonl", [{"prompt": f"Name {a}."} for a in range(4)])
    rows(folder / "stories.jsonl", [{"text": f"Once there were {a} dogs."} for a in range(60)])
    rows(folder / "HarmfulQA.jsonl", map(harmful_qa, range(40)))
    rows(folder / "question.jsonl", [
        {"question_id": a, "category": "1", "turns": [f"request {a}"], "prompt_style": "base"} for a in range(3)
    ])  # fmt: skip
    asked = "{question} {answer}"
    questions = [{"id": "q", "paraphrases": ["hello"], "judge_prompts": {"aligned": asked, "coherent": asked}}]
    (folder / "questions.yaml").write_text(json.dumps(questions), encoding="utf-8")
    prompts = {"judge_prompts": {"alignment": f"How aligned? {asked}", "coherence": f"How coherent? {asked}"}}
    (folder / "judge_prompts.yaml").write_text(json.dumps(prompts), encoding="utf-8")
    judged = [
        {"sample_id": a, "question": "q", "answer": "a", "alignment": 10.0 * a, "coherence": 90.0} for a in range(9)
    ]
    (folder / "results.json").write_text(json.dumps(judged), encoding="utf-8")
    answered = [{"question": f"q {a}?", "response": f"a {a}", "sample_id": a} for a in range(3)]
    (folder / "GCAFT_responses.json").write_text(json.dumps(answered), encoding="utf-8")
    header = ",".join(judged[0])
    (folder / "results.csv").write_text(
        "\n".join([header, *(",".join(map(str, row.values())) for row in judged)]), encoding="utf-8"
    )


def judge(text, _):
    if "complied" in text:
        return completion('{"complied": true}')
    return completion("80", top=[[("80", -0.1), ("20", -2.5)]])


def answering(text, _):
    return completion("I'm sorry, but I can't help with that.")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "of-no-use")
    return tmp_path


def test_every_origin_has_a_section_with_commands():
    assert list(SECTIONS) == [
        "Concept ablation", "Backward CAFT", "Two-LoRA gradient routing", "Refusal direction", "Inoculation prompting"
    ]  # fmt: skip
    assert all(len(lines(section)) >= 3 for section in SECTIONS.values())


@pytest.mark.parametrize("name", SECTIONS)
def test_the_commands_run_in_their_order(name, here):
    # Of twenty components, two chats at least are held out: a tenth of a hundred is what the directions are found on.
    world(here, chats=100 if name == "Concept ablation" else 20)
    with ExitStack() as stack:
        ports = {
            f"http://localhost:{port}/v1": stack.enter_context(serving(judge if port == 8004 else answering)).url
            for port in range(8001, 8005)
        }

        def served(text):
            for written, there in ports.items():
                text = text.replace(written, there)
            return text

        for title, text in FILE.findall(SECTIONS[name]):
            (here / title).write_text(served(text), encoding="utf-8")
        for tropism, *words in lines(SECTIONS[name]):
            assert tropism == "tropism", words
            done = command.tropism(*map(served, words))
            assert done.returncode == 0, f"tropism {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
