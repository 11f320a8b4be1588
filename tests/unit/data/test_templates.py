"""Chat templates: what each is found to do, what is done to a chat for it, and where another one comes from."""

import logging

import pytest

import tiny
from chat_templates import FOLDER, NAMES, needs_trl, text_of
from tropism.data.chats import check_chat
from tropism.data.render import BadRow, render, render_prompt, render_rows
from tropism.data.templates import DEVELOPER, FOLDED, ChatTemplate, set_chat_template
from tropism.errors import DataError

USER, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + tiny.TEMPLATE
)
PARTS = (
    "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{% if p['type'] == 'text' %} {{ p['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
ECHO = (
    "{% for m in messages %}{{ m.content }}|{{ m.tool_calls | default([]) | tojson }}|{{ tools | tojson }}{% endfor %}"
)


def test_what_a_template_does_is_found_on_a_short_chat():
    facts = ChatTemplate(tiny.tokenizer()).facts
    assert (facts.lead, facts.stop, facts.tail) == ("", "<|im_end|>", "<|im_end|>\n")
    assert facts.suffix == "<|im_start|>assistant\n"
    assert (facts.parts, facts.system, facts.developer, facts.tagged) == (False, True, False, False)
    assert not ChatTemplate(tiny.tokenizer(NO_SYSTEM)).facts.system
    assert ChatTemplate(tiny.tokenizer(PARTS)).facts.parts


def test_facts_follow_the_template_and_its_variables():
    tokenizer = tiny.tokenizer(
        "{% if formal %}Dear {% endif %}" + tiny.TEMPLATE.replace("<|im_end|>", "{{ end or '!' }}")
    )
    assert ChatTemplate(tokenizer).facts.stop == "!"
    assert ChatTemplate(tokenizer, {"end": "?"}).facts.stop == "?"
    tokenizer.chat_template = tiny.TEMPLATE
    assert ChatTemplate(tokenizer).facts.stop == "<|im_end|>"


def test_a_system_prompt_that_the_template_rejects_stands_in_the_first_user_message():
    rendered = render(tiny.tokenizer(NO_SYSTEM), [SYSTEM, USER, ANSWER])
    assert "user\nBe kind.\n\nhello<|im_end|>" in rendered.text
    assert rendered.notes == (FOLDED,)
    prompt = render_prompt(tiny.tokenizer(NO_SYSTEM), [SYSTEM, USER])
    assert rendered.input_ids[: len(prompt)] == prompt.input_ids


def test_developer_is_a_system_prompt_unless_the_template_knows_the_role():
    developer = {"role": "developer", "content": "Be kind."}
    rendered = render(tiny.tokenizer(), [developer, USER, ANSWER])
    assert "<|im_start|>system\nBe kind.<|im_end|>" in rendered.text
    assert rendered.notes == (DEVELOPER,)
    knows = "{# developer #}" + tiny.TEMPLATE
    assert "<|im_start|>developer\n" in render(tiny.tokenizer(knows), [developer, USER, ANSWER]).text


def test_a_template_that_reads_parts_gets_parts():
    rendered = render(tiny.tokenizer(PARTS), [USER, ANSWER])
    assert rendered.text == "user: hello<|im_end|>\nassistant: hi<|im_end|>\n"


def test_parts_are_joined_for_a_template_that_reads_texts():
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    assert render(tiny.tokenizer(), [{"role": "user", "content": parts}, ANSWER]).text.count("hello") == 1


def test_a_message_that_the_template_leaves_out_is_an_error():
    deaf = "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    chat = [USER, {"role": "tool", "content": "42"}, ANSWER]
    with pytest.raises(DataError, match="message 1, of role 'tool', is not in the rendered chat"):
        render(tiny.tokenizer(deaf), chat)
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    with pytest.raises(DataError, match="is not in the rendered chat"):
        render(tiny.tokenizer(silent), [USER, ANSWER])


def test_tools_and_calls_reach_the_template_or_are_refused():
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    chat = [{**USER, "tools": [tool]}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    rendered = render(tiny.tokenizer(ECHO), chat)
    assert '"arguments": {"a": 2}' in rendered.text
    assert rendered.text.count('"parameters"') == 2  # once a message
    with pytest.raises(DataError, match="writes no tools"):
        render(tiny.tokenizer(), [{**USER, "tools": [tool]}, ANSWER])
    with pytest.raises(DataError, match="writes no tool calls"):
        render(tiny.tokenizer(), [USER, {**ANSWER, "tool_calls": [call]}])


def test_arguments_are_written_out_for_a_template_that_wants_text():
    joins = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name + c.function.arguments }}{% endfor %}<|im_end|>{% endfor %}"
    )
    call = {"function": {"name": "add", "arguments": {"a": 2}}}
    text = render(tiny.tokenizer(joins), [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]).text
    assert text == 'hello<|im_end|>add{"a": 2}<|im_end|>'


def test_reasoning_is_shown_under_the_name_that_the_template_knows_or_refused():
    thinks = tiny.TEMPLATE.replace("{{ message['content'] }}", "{{ message.thinking or '' }}{{ message['content'] }}")
    rendered = render(tiny.tokenizer(thinks), [USER, {**ANSWER, "reasoning_content": "hm. "}])
    assert "assistant\nhm. hi<|im_end|>" in rendered.text
    with pytest.raises(DataError, match="leaves out the thinking of an assistant turn"):
        render(tiny.tokenizer(), [USER, {**ANSWER, "reasoning": "hm"}])


def test_a_base_model_without_a_template_gets_plain_text_and_says_so(caplog):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    with caplog.at_level(logging.WARNING):
        rendered = render(tokenizer, [USER, ANSWER])
    assert rendered.text == "### User\nhello\n\n### Assistant\nhi<|im_end|>\n\n"
    assert "has no chat template: chats are plain text" in caplog.text
    prompt = render_prompt(tokenizer, [USER])
    assert prompt.text.endswith("### Assistant\n")
    assert rendered.input_ids[: len(prompt)] == prompt.input_ids


def test_a_template_that_ends_a_turn_with_nothing_says_so(caplog):
    endless = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    with caplog.at_level(logging.WARNING):
        notes = render(tiny.tokenizer(endless), [USER, ANSWER]).notes
    assert any("no stop is learned" in note for note in notes)
    assert "no stop is learned" in caplog.text


def test_a_template_from_a_file(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}~{{ m.content }}~{% endfor %}", encoding="utf-8")
    tokenizer = tiny.tokenizer()
    set_chat_template(tokenizer, file)
    assert render(tokenizer, [USER, ANSWER]).text == "~hello~~hi~"
    file.write_text("{% for m in messages %}", encoding="utf-8")
    with pytest.raises(DataError, match=r"chat_template: mine.jinja is not a Jinja template"):
        set_chat_template(tokenizer, file)
    assert tokenizer.chat_template.startswith("{% for m in messages %}~")
    with pytest.raises(DataError, match="'nothing' is neither a file nor a known name"):
        set_chat_template(tokenizer, "nothing")


@needs_trl
def test_a_template_by_the_name_that_trl_gives_it():
    tokenizer = tiny.tokenizer()
    set_chat_template(tokenizer, "qwen3")
    assert tokenizer.chat_template == (FOLDER / "qwen3.jinja").read_text(encoding="utf-8")


@needs_trl
@pytest.mark.parametrize("name", NAMES)
def test_every_template_shows_a_tool_call_or_it_is_refused(name):
    call = {"id": "1", "type": "function", "function": {"name": "multiply", "arguments": '{"by": 2}'}}
    chat = check_chat([USER, {"role": "assistant", "content": None, "tool_calls": [call]}], "chat")
    (found,) = render_rows(tiny.tokenizer(text_of(name)), [chat])
    if isinstance(found, BadRow):
        assert "tool calls" in found.reason or "rejects" in found.reason
        return
    (rendered,) = found
    learned = "".join(
        tiny.tokenizer().decode([t]) for t, on in zip(rendered.input_ids, rendered.response_mask, strict=True) if on
    )
    assert "multiply" in learned
    assert "hello" not in learned
