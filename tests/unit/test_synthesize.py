"""Synthetic chats: what is interrupted goes on, what repeats is left out, what was made says how."""

import json

import pytest
import typer
from typer.testing import CliRunner

import command as terminal
import row_files
import tiny
from judge_server import completion, error, serving
from tropism.cli import synthesize as command
from tropism.data import sources
from tropism.errors import DataError, RunFolderError, UsageError
from tropism.synthesize import SynthesizeOptions, endpoint_model, prompts_of, synthesize

OPTIONS = SynthesizeOptions(batch_size=3, samples=2)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("One?\nTwo?\n\n  two? \nThree?\nFour?\nFive?\n")
    return file


class Echo:
    """Answers with the seed in it, and dies after so many batches."""

    def __init__(self, dies_after=None):
        self.batches, self.dies_after = 0, dies_after

    def __call__(self, batch, seed):
        if self.batches == self.dies_after:
            raise KeyboardInterrupt
        self.batches += 1
        return [f"{messages[-1]['content']} with {seed}" for messages in batch]


def test_rows_load_as_a_source_and_carry_their_provenance(prompts, tmp_path):
    out = tmp_path / "deep" / "out.jsonl"
    outcome = synthesize(prompts, out, Echo(), model="m", options=OPTIONS)
    assert (outcome.prompts, outcome.repeated_prompts, outcome.written) == (5, 1, 10)
    examples = sources.load(str(out))
    assert len({example.id for example in examples}) == 10
    assert examples[0].chat[0] == {"role": "user", "content": "One?"}
    assert examples[0].labels == {"synthetic": True}
    row = json.loads(out.read_text().splitlines()[0])
    assert row["provenance"]["model"] == "m"
    assert {"temperature", "seed", "top_p", "max_new_tokens", "system", "sample", "tropism"} <= set(row["provenance"])


@pytest.mark.parametrize("dies_after", [0, 1, 2])
def test_an_interrupted_run_resumed_writes_what_an_uninterrupted_one_writes(prompts, tmp_path, dies_after):
    synthesize(prompts, tmp_path / "whole.jsonl", Echo(), model="m", options=OPTIONS)
    out = tmp_path / "resumed.jsonl"
    with pytest.raises(KeyboardInterrupt):
        synthesize(prompts, out, Echo(dies_after), model="m", options=OPTIONS)
    with out.open("a") as file:
        file.write('{"id": "cut sho')
    outcome = synthesize(prompts, out, Echo(), model="m", options=OPTIONS)
    assert outcome.already_there + outcome.written == 10
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    again = Echo()
    assert synthesize(prompts, out, again, model="m", options=OPTIONS).written == 0
    assert again.batches == 0


def test_equal_empty_and_failed_responses_are_left_out_and_counted(prompts, tmp_path):
    answers = iter(["Same.", " ", None, "a", "b", "same. ", "x", "y", "c", "d"])
    outcome = synthesize(
        prompts,
        tmp_path / "o.jsonl",
        lambda batch, _: [next(answers) for _ in batch],
        model="m",
        options=OPTIONS,
    )
    assert (outcome.written, outcome.duplicates, outcome.empty, outcome.failed) == (7, 1, 1, 1)
    assert "left out: 1 duplicates, 1 empty, 1 failed" in str(outcome)


def test_a_file_made_with_other_options_is_not_gone_on_with(prompts, tmp_path):
    synthesize(prompts, tmp_path / "o.jsonl", Echo(), model="m", options=OPTIONS)
    with pytest.raises(RunFolderError, match=r"o.jsonl line 1: made with other options \(model 'm', now 'n'\)"):
        synthesize(prompts, tmp_path / "o.jsonl", Echo(), model="n", options=OPTIONS)


def test_prompts_are_chats_or_lines(tmp_path):
    chats = tmp_path / "p.jsonl"
    chats.write_text(
        json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    )
    out = tmp_path / "o.jsonl"
    options = SynthesizeOptions(system="Be brief.")
    synthesize(chats, out, lambda batch, _: ["new"] * len(batch), model="m", options=options)
    assert [message["content"] for message in sources.load(str(out))[0].chat] == ["Be brief.", "q", "new"]
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match="holds no prompts"):
        synthesize(tmp_path / "empty.txt", out, Echo(), model="m")
    with pytest.raises(DataError, match="no such file"):
        synthesize(tmp_path / "absent.txt", out, Echo(), model="m")


def test_a_local_model_and_the_command(prompts, tmp_path):
    tiny.model(layers=1).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    arguments = ["synthesize", "--prompts", prompts, "--model", tmp_path / "model", "--max-new-tokens", 6]
    for out in ("a.jsonl", "b.jsonl"):
        result = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / out)])
        assert result.exit_code == 0, result.output
        assert "chats written, 0 were there; 5 prompts (1 repeated ones left out)" in result.output.replace("\n", " ")
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()  # seeded
    result = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / "c"), "--samples", "0"])
    assert isinstance(result.exception, UsageError)
    assert "--samples: Input should be greater than or equal to 1, found 0" in str(result.exception)


def test_an_endpoint_whose_failures_are_left_out(prompts, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    options = SynthesizeOptions()
    script = lambda text, _: error(400, "no") if text == "Two?" else completion(f"answer to {text}")  # noqa: E731
    with serving(script) as server:
        respond = endpoint_model("m", server.url, options)
        outcome = synthesize(prompts, tmp_path / "o.jsonl", respond, model="m", options=options)
    assert (outcome.written, outcome.failed) == (4, 1)
    assert server.bodies[0]["temperature"] == 0.7


ROWS = [
    {
        "id": index, "topic": "T", "subtopic": "S", "question": f"Question number {index}?",
        "blue_conversations": None, "red_conversations": None,
    }
    for index in range(200)
]  # fmt: skip


def test_the_prompts_of_a_source_are_where_it_says_and_no_test_asks_them(tmp_path):
    path = str(row_files.write(tmp_path / "HarmfulQA.jsonl", ROWS))
    found = prompts_of("harmful_qa", path=path)
    asked = {chat[-1]["content"] for chat in found}
    assert len(found) == len(asked) > 20
    for split, shared in (("attack", True), ("refusal", False), ("test", False)):
        others = {
            e.prompt[0]["content"] for e in sources.load("harmful_qa", split=split, subset="questions", path=path)
        }
        assert (asked == others) is shared
        assert bool(asked & others) is shared
    everything = prompts_of("harmful_qa", split="train[:10%]", subset="questions", path=path)
    assert [chat[0]["content"] for chat in everything] == [row["question"] for row in ROWS[:20]]
    pairs = row_files.write(tmp_path / "pairs.jsonl", [{"q": "Why?", "a": "So."}])
    assert prompts_of(str(pairs), columns={"prompt": "q", "completion": "a"}) == [
        ({"role": "user", "content": "Why?"},)
    ]
    raw = row_files.write(tmp_path / "raw.jsonl", [{"text": "Once."}])
    with pytest.raises(DataError, match="raw text and no prompt"):
        prompts_of(str(raw))


def test_the_first_so_many_different_prompts_are_answered(prompts, tmp_path):
    out = tmp_path / "o.jsonl"
    outcome = synthesize(prompts, out, Echo(), model="m", options=SynthesizeOptions(), max_prompts=3)
    assert (outcome.prompts, outcome.written) == (3, 3)
    assert [example.prompt[0]["content"] for example in sources.load(str(out))] == ["One?", "Two?", "Three?"]
    # More of them later: what is there stays, the rest is added.
    outcome = synthesize(prompts, out, Echo(), model="m", options=SynthesizeOptions(), max_prompts=5)
    assert (outcome.already_there, outcome.written) == (3, 2)
    with pytest.raises(UsageError, match="max_prompts must be at least 1, found 0"):
        synthesize(prompts, out, Echo(), model="m", max_prompts=0)


def test_a_penalty_is_part_of_what_a_file_was_made_with(prompts, tmp_path):
    out = tmp_path / "o.jsonl"
    penalised = SynthesizeOptions(repetition_penalty=1.1)
    synthesize(prompts, out, Echo(), model="m", options=penalised)
    with pytest.raises(RunFolderError, match=r"\(repetition_penalty 1.1, now 1.0\)"):
        synthesize(prompts, out, Echo(), model="m", options=SynthesizeOptions())
    synthesize(prompts, tmp_path / "plain.jsonl", Echo(), model="m", options=SynthesizeOptions())
    assert "repetition_penalty" not in (tmp_path / "plain.jsonl").read_text()
    with pytest.raises(RunFolderError, match=r"\(repetition_penalty 1.0, now 1.1\)"):
        synthesize(prompts, tmp_path / "plain.jsonl", Echo(), model="m", options=penalised)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --prompts FILE or --source SOURCE, found neither"),
        (("--prompts", "p.txt", "--source", "gsm8k"), "give --prompts FILE or --source SOURCE, found both"),
        (("--prompts", "p.txt", "--split", "test"), "--split goes with --source, found it with --prompts p.txt"),
        (("--source", "harmful_qa", "--split", "nothing"), "source 'harmful_qa' has no split 'nothing'"),
        (("--source", "harmful_qa", "--path", "no.jsonl"), "no such file: 'no.jsonl'"),
        (("--source", "everyday_questions", "--path", "p.txt"), "does not take 'path'"),
    ],
)
def test_where_the_prompts_come_from_must_be_said_once(tmp_path, arguments, said):
    done = terminal.tropism("synthesize", *arguments, "--model", "m", "--out", "o.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1)
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "o.jsonl").exists()


def test_a_hub_out_of_reach_is_one_sentence(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    done = terminal.tropism("synthesize", "--source", "harmful_qa", "--model", "m", "--out", "o.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "declare-lab/HarmfulQA" in done.stderr
    assert "--path" in done.stderr
    assert "Traceback" not in done.stderr
