"""Chatting: every column says what its own run alone says, histories stay apart, and no answer reaches the terminal raw."""

import io
import os
import pty
import shutil
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from command import tropism
from tropism.cli.talking import Talking
from tropism.data.generation import generate
from tropism.errors import DataError, RunFolderError, SpecError, UsageError
from tropism.experiments.after.chat import Column, live, open_chat
from tropism.experiments.after.finished import locate
from tropism.experiments.store import RunKey
from tropism.experiments.subject import Trained
from tropism.interventions.routing_modes import MODES, ablation_mode
from tropism.models import load

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")


@pytest.fixture
def out(finished):
    return finished


def alone(out, condition, mode, chat, tokens=8):
    """The oracle: a model of its own, loaded as evaluation loads it."""
    experiment = locate(out)[0].experiment
    model, tokenizer = load(experiment.model)
    adapter = None if condition == "base" else out / condition / "seed-0" / "adapter"
    trained = Trained(adapter, bool(mode))
    model = trained.load(model)
    base = model if adapter is None else model.get_base_model()
    options = experiment.generate.model_copy(update={"max_new_tokens": tokens})
    if mode:
        with ablation_mode(model, mode):
            return generate(base, tokenizer, [chat], options)[0]
    return generate(base, tokenizer, [chat], options)[0]


def test_each_column_says_what_its_run_alone_says_and_goes_on_from_its_own_words(out):
    names = ["base", "baseline", "prompted", *(f"routed:{mode}" for mode in MODES)]
    chat = open_chat(out, conditions=names)
    assert chat.labels == [
        "base", "baseline", "prompted", "routed · full", "routed · forget ablated", "routed · retain ablated",
    ]  # fmt: skip
    histories = {name: [] for name in names}
    for prompt in ("Why?", "And then?"):
        answers = chat.ask(prompt)
        assert len(set(answers)) > 3  # the runs do differ, so a mixed-up column would show
        for name, answer in zip(names, answers, strict=True):
            condition, _, mode = name.partition(":")
            histories[name].append({"role": "user", "content": prompt})
            assert answer == alone(out, condition, mode, histories[name]), name
            histories[name].append({"role": "assistant", "content": answer})


def test_reset_forgets_what_was_said_and_a_system_prompt_is_in_force_until_it_is_taken_away(out):
    chat = open_chat(out, conditions=["baseline"])
    first = chat.ask("Why?")
    assert chat.ask("Why?") != first  # a second turn, so another context
    chat.reset()
    assert chat.ask("Why?") == first
    chat.instruct("Be brief.")
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert chat.ask("Why?") == [alone(out, "baseline", "", told)]
    chat.reset()
    assert chat.ask("Why?") == [alone(out, "baseline", "", told)]
    chat.instruct(None)
    assert chat.ask("Why?") == first


def test_a_prompt_that_does_not_fit_leaves_the_conversation_as_it_was(out):
    chat = open_chat(out, conditions=["base", "baseline"])
    first = chat.ask("Why?")
    with pytest.raises(DataError, match="base: 1 of 1 texts .* longer than the model's context .* /reset begins"):
        chat.ask("x" * 600)
    second = chat.ask("And?")
    again = open_chat(out, conditions=["base", "baseline"])
    assert [again.ask("Why?"), again.ask("And?")] == [first, second]


def test_one_model_is_in_memory(out):
    chat = open_chat(out, conditions=["baseline", "prompted", "routed"])
    embeddings = [p for n, p in chat._model.named_parameters() if n.endswith("embed_tokens.weight")]
    assert len(embeddings) == 1
    with torch.no_grad(), live(chat._model, Column(RunKey("routed", 0), "forget_ablated")):
        pass
    names = set(chat._model.peft_config)
    assert names == {"run-baseline", "run-prompted", "run-routed-retain", "run-routed-forget"}


def test_what_is_shown_where_nothing_is_chosen(out):
    chat = open_chat(out)
    assert chat.labels == ["baseline", "prompted"]
    assert any("prompted was trained with the system prompt" in note for note in chat.notes)
    assert any(note == "also finished: two, routed; choose with --conditions" for note in chat.notes)
    assert open_chat(out / "routed" / "seed-0").labels == ["baseline", "routed · full"]
    assert open_chat(out / "baseline" / "seed-1").labels == ["base", "baseline"]
    assert open_chat(out / "baseline" / "seed-1").columns[1].key == RunKey("baseline", 1)
    assert open_chat(out, modes=True).labels == [f"routed · {mode.replace('_', ' ')}" for mode in MODES]
    assert open_chat(out, modes=True, conditions=["two"]).labels[1] == "two · forget ablated"


def test_temperature_and_length_replace_the_experiments(out):
    chat = open_chat(out, conditions=["base"], max_new_tokens=3, temperature=0.0)
    assert chat.ask("Why?") == [alone(out, "base", "", [{"role": "user", "content": "Why?"}], tokens=3)]
    drawn = [open_chat(out, conditions=["base"], temperature=5.0).ask("Why?") for _ in range(2)]
    assert drawn[0] == drawn[1] != chat.ask("Why?")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"conditions": ["baselin"]}, SpecError, "no condition is called 'baselin'; available: base, plain, baseline"),
        ({"conditions": ["plain"]}, RunFolderError, "the run plain/seed-0 is not finished; run the experiment again to go on"),
        ({"conditions": ["routed"], "seed": 1}, RunFolderError, "the run routed/seed-1 is not finished"),
        ({"seed": 7}, SpecError, "has no seed 7; its seeds are 0, 1"),
        ({"conditions": ["baseline"], "modes": True}, UsageError, "--modes: 'baseline' was trained with one adapter"),
        ({"conditions": ["base"], "modes": True}, UsageError, "--modes: 'base' is the untrained model"),
        ({"seed": 1, "modes": True}, UsageError, "--modes: no finished condition of 'tiny' has two adapters"),
        ({"conditions": ["routed:gone"]}, SpecError, "a mode must be one of full, forget_ablated, retain_ablated, found 'gone'"),
        ({"conditions": ["baseline:full"]}, UsageError, "so it has no ablation modes; conditions with two: two, routed"),
        ({"conditions": ["routed", "routed:full"]}, SpecError, "'routed · full' is named twice"),
        ({"max_new_tokens": 0}, UsageError, "option 'max_new_tokens': .* found 0"),
        ({"temperature": -1.0}, UsageError, "option 'temperature': .* found -1.0"),
        ({"temperature": float("nan")}, UsageError, "option 'temperature': .* found nan"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(out, options, error, said):
    with pytest.raises(error, match=said):
        open_chat(out, **options)


def test_a_folder_that_cannot_be_used_is_said(out, tmp_path):
    mine = tmp_path / "out"
    shutil.copytree(out, mine)
    run = mine / "baseline" / "seed-0"
    with pytest.raises(UsageError, match="is the run of seed 0, found 1"):
        open_chat(run, seed=1)
    (run / "responses.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(RunFolderError, match="a file of the run baseline/seed-0 is missing or was changed"):
        open_chat(mine)
    shutil.rmtree(run / "adapter")
    with pytest.raises(RunFolderError, match="the run baseline/seed-0 has no adapter stored"):
        open_chat(mine)
    (mine / "routed/seed-0/adapter/forget/adapter_model.safetensors").unlink()
    with pytest.raises(RunFolderError, match="the run routed/seed-0 has no adapter stored"):
        open_chat(mine, modes=True)
    (run / "DONE.json").write_text("{", encoding="utf-8")
    (mine / "prompted/seed-0/DONE.json").unlink()
    (mine / "prompted/seed-0/FAILED.json").write_text('{"error": "the loss is not finite"}', encoding="utf-8")
    with pytest.raises(
        RunFolderError, match=r"the run prompted/seed-0 failed \(the loss is not finite\); finished are"
    ):
        open_chat(mine, conditions=["prompted"])
    for text, said in (
        ("name: [", "is not YAML"),
        ("name: tiny", "is required and missing"),
        ("", "experiment.yaml: the file"),
    ):
        (mine / "experiment.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(RunFolderError, match=said):
            open_chat(mine)
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunFolderError, match="holds no experiment.yaml|there is no folder"):
            open_chat(path)


HOSTILE = "[red]x[/red] [/] \x1b[31mred\x1b]0;title\x07 \x9b2J a\rb :smile: \u202egnp \ud800\n[baseline]"


class Parrot:
    """A chat whose answers are hostile."""

    def __init__(self):
        self.labels, self.notes, self.system, self.log = ["one", "two"], (), None, []

    def ask(self, prompt, report=lambda *_: None):
        self.log.append(prompt)
        return [HOSTILE, ""]

    def reset(self):
        self.log.append("reset")

    def instruct(self, system):
        self.system = system
        self.log.append(("system", system))


def consoles(terminal, width=100):
    return [
        Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, color_system="standard" if terminal else None)
        for _ in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(("terminal", "width"), [(False, 100), (True, 100), (True, 40)])
def test_an_answer_is_shown_as_text_whatever_it_holds(terminal, width):
    out, notes = consoles(terminal, width)
    Talking(out=out, notes=notes).talk(Parrot(), ["hi \x1b[31m[b]"])
    text = out.file.getvalue()
    assert "[red]x[/red]" in text
    assert ":smile:" in text
    assert "> hi ⟨U+001B⟩" in text
    assert "⟨U+202E⟩" in text
    for raw in ("\x1b[31mred", "\x1b]", "\x07", "\x9b", "\u202e", "\ud800", "\r"):
        assert raw not in text
    assert "(no text)" in text
    if not terminal:
        assert "\x1b" not in text
        assert text.splitlines()[2] == "[one]"
        assert "\n  [baseline]\n[two]\n  (no text)\n" in text  # an answer cannot pass for a heading


def test_commands_and_fresh():
    chat, (out, notes) = Parrot(), consoles(False)
    Talking(out=out, notes=notes).talk(chat, ["", "/system  Be kind. ", "a", "/reset", " /b", "/system", "/quit", "c"])
    assert chat.log == [("system", "Be kind."), "a", "reset", "/b", ("system", None)]
    with pytest.raises(UsageError, match="unknown command '/foo'"):
        Talking(out=out, notes=notes).talk(chat, ["/foo"])
    with pytest.raises(UsageError, match="no prompt to ask"):
        Talking(out=out, notes=notes).talk(chat, ["", "/reset"])
    with pytest.raises(DataError, match="UTF-8"):
        Talking(out=out, notes=notes).talk(chat, ["\udcff"])
    chat = Parrot()
    Talking(fresh=True, out=out, notes=notes).talk(chat, ["a", "b"])
    assert chat.log == ["reset", "a", "reset", "b"]


def test_the_command_reads_a_pipe_and_ends_in_one_sentence_where_it_must(out):
    command = [sys.executable, "-m", "tropism", "chat", str(out)]
    done = subprocess.run([*command, "--modes"], input="Why?\n/reset\nWho?\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[routed · forget ablated]") == 2
    assert done.stdout.startswith("> Why?\n")
    bad = tropism("chat", out, "--conditions", "nobody")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert (
        bad.stderr
        == "error: no condition is called 'nobody'; available: base, plain, baseline, prompted, two, routed\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is POSIX's")
def test_at_a_terminal_it_goes_on_after_a_mistake_and_ctrl_d_leaves(out):
    leader, follower = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "tropism", "chat", str(out)], stdin=follower, stdout=follower, stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    for line in (b"/foo\n", b"Why?\n", b"\x04"):
        while not seen.endswith(b"you> ") and chat.poll() is None:
            seen += os.read(leader, 4096)
        seen = seen.removesuffix(b"you> ") + b"you>  "
        os.write(leader, line)
    assert chat.wait(timeout=60) == 0
    os.close(leader)
    shown = seen.decode()
    assert "unknown command '/foo'" in shown
    assert "baseline" in shown
    assert "prompted" in shown
    assert "│" in shown
