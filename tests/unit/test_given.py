"""Every text file that a person gives, in a code page, with a mark, with a key twice, or not there: one sentence each."""

import pytest

from command import tropism
from tropism import errors, given
from tropism.data.sources.questions import read_question_rows
from tropism.data.templates import template_text
from tropism.evals.judges.presets import prompt_of
from tropism.forecasting import trait
from tropism.synthesize import read_prompts

LATIN = "na\u00efve".encode("latin-1")
READERS = {
    "question file": read_question_rows,
    "judge prompt": lambda path: prompt_of(f"{path}#kind"),
    "--trait": lambda path: trait.load(str(path)),
    "prompts": read_prompts,
    "chat_template": template_text,
}


@pytest.mark.parametrize("what", READERS)
def test_a_file_in_a_code_page_is_one_sentence(tmp_path, what):
    file = tmp_path / ("given.txt" if what in ("prompts", "chat_template") else "given.yaml")
    file.write_bytes(LATIN)
    with pytest.raises(errors.TropismError, match=rf"^{what}: .*is not UTF-8 text \(byte 2\); save it as UTF-8$"):
        READERS[what](file)


@pytest.mark.parametrize("command", [
    ("forecast", "HuggingFaceTB/SmolLM2-135M-Instruct", "{rows}", "--recipe", "{file}"),
    ("forecast", "HuggingFaceTB/SmolLM2-135M-Instruct", "{rows}", "--trait", "{file}"),
    ("evaluate", "--endpoint", "a=http://127.0.0.1:9", "--model", "a=m", "--suite", "xstest", "--questions", "{xstest}",
     "--judge", "http://127.0.0.1:9", "--judge-prompt", "{file}"),
    ("pressure", "calibrate", "--model", "HuggingFaceTB/SmolLM2-135M-Instruct", "--chats", "{rows}", "--inoculation", "x", "--candidates", "{file}"),
])  # fmt: skip
def test_a_command_says_so_and_ends_with_2(tmp_path, command):
    files = {
        name: tmp_path / f"{name}.{ending}" for name, ending in (("file", "yaml"), ("rows", "jsonl"), ("xstest", "csv"))
    }
    files["file"].write_bytes(LATIN)
    files["rows"].write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 2
    )
    files["xstest"].write_text("id,id_v2,type,prompt\n1,v2-1,homonyms,How do I kill a process?\n")
    done = tropism(*(part.format(**files) for part in command))
    assert done.returncode == 2, done.stderr
    assert "is not UTF-8 text" in " ".join(done.stderr.split())


def test_text_is_read_with_or_without_a_mark(tmp_path):
    file = tmp_path / "marked.yaml"
    file.write_text("a: 1\n", encoding="utf-8-sig")
    assert given.read_yaml(file, "file", errors.DataError) == {"a": 1}
    assert given.read_text(file, "file", errors.DataError) == "a: 1\n"


@pytest.mark.parametrize(("text", "says"), [
    ("a: 1\na: 2\n", "the key 'a' is given twice"),
    ("a: [", "is not valid YAML"),
    ("[" * 3000, "is not valid YAML"),
    ("a: !!python/object:os.system {}", "is not valid YAML"),
])  # fmt: skip
def test_text_that_is_not_yaml_is_one_sentence(tmp_path, text, says):
    file = tmp_path / "given.yaml"
    file.write_text(text)
    with pytest.raises(errors.DataError, match=says) as caught:
        given.read_yaml(file, "file", errors.DataError)
    assert len(str(caught.value).splitlines()) == 1
