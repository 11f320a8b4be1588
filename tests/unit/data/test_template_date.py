"""Templates that write today's date: with a frozen date they write that one, and everything else as they did."""

from datetime import date
from importlib.resources import files

import pytest

import tiny
from tropism.data.render import render, render_prompt
from tropism.data.template_date import freeze, writes_date
from tropism.errors import DataError

CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + tiny.TEMPLATE


def published(name):
    """A template of the field, as the `trl` extra installs it."""
    pytest.importorskip("trl", reason="the templates come with the extra 'trl'")
    file = files("trl") / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this TRL has no {file.name}")
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "written"), [("llama3_2", "26 Jul 2024"), ("gptoss", "2024-07-26")])
def test_a_frozen_date_is_what_the_template_writes(name, written):
    tokenizer = tiny.tokenizer(published(name))
    assert f"{written}\n" in render_prompt(tokenizer, CHAT, template_kwargs={"frozen_date": "2024-07-26"}).text


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "muse_glimmer"])
def test_frozen_on_today_the_text_is_the_unfrozen_one(name):
    tokenizer = tiny.tokenizer(published(name))
    today = date.today().isoformat()
    assert render_prompt(tokenizer, CHAT, template_kwargs={"frozen_date": today}) == render_prompt(tokenizer, CHAT)
    assert tokenizer.chat_template == published(name)


def test_training_chats_are_frozen_as_prompts_are():
    tokenizer = tiny.tokenizer(DATED)
    whole = render(tokenizer, CHAT, template_kwargs={"frozen_date": "2001-02-03"})
    prompt = render_prompt(tokenizer, CHAT, template_kwargs={"frozen_date": "2001-02-03"})
    assert whole.text.startswith("Today: 03 Feb 2001\n")
    assert whole.text.startswith(prompt.text)


def test_which_templates_write_a_date():
    llama = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
    assert writes_date(llama, {})
    assert not writes_date(llama, {"date_string": "26 Jul 2024"})
    assert writes_date(DATED, {"date_string": "26 Jul 2024"})  # which it does not read
    assert writes_date({"default": tiny.TEMPLATE, "tool_use": DATED}, {})
    assert not writes_date(tiny.TEMPLATE, {})
    assert not writes_date(None, {})


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(DataError, match="frozen_date must be a date like 2026-01-31, found 'yesterday'"):
        freeze(DATED, "yesterday")
    with pytest.raises(DataError, match="computes the format in which it writes today's date"):
        freeze("{{ strftime_now(format) }}", "2024-07-26")
