"""Chats to tokens: one path for one chat or many, the end of turn supervised, one BOS, errors that name the chat."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import tropism as tp
from tropism.data.render import CHUNK, render, render_many, render_prompt, render_prompts, render_rows
from tropism.errors import DataError

CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]

# What Qwen3 does: thinking in earlier assistant turns is dropped from the rendered history.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}" + tiny.TEMPLATE
)


def supervised(tokenizer, rendered):
    return tokenizer.decode([i for i, on in zip(rendered.input_ids, rendered.response_mask, strict=True) if on])


def test_exactly_the_response_and_its_end_of_turn_are_supervised(tokenizer):
    assert supervised(tokenizer, tp.render(tokenizer, CHAT)) == "It is 4.<|im_end|>"


def test_every_assistant_turn_of_a_conversation_is_supervised(tokenizer):
    chat = [*CHAT, {"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "Six."}]
    rendered = render(tokenizer, chat)
    assert supervised(tokenizer, rendered) == "It is 4.<|im_end|>Six.<|im_end|>"
    assert tokenizer.decode(rendered.input_ids[rendered.positions["first_response"][0] :]).startswith("Six.")


def test_named_positions(tokenizer):
    rendered = render(tokenizer, CHAT)
    where = rendered.positions
    assert where["first_response"] == [where["last_prompt"][0] + 1] == where["response"][:1]
    assert [rendered.response_mask[i] for i in where["response"]] == [True] * sum(rendered.response_mask)
    assert where["all"] == list(range(len(rendered)))


def test_a_prompt_ends_in_the_generation_prompt_and_is_a_prefix_of_the_whole(tokenizer):
    prompt, whole = render_prompt(tokenizer, CHAT), render(tokenizer, CHAT)
    assert prompt.text.endswith("<|im_start|>assistant\n")
    assert whole.input_ids[: len(prompt)] == prompt.input_ids
    assert not any(prompt.response_mask)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_any_text_decodes_to_itself(question, answer):
    tokenizer = tiny.tokenizer()
    clean = [part.encode("utf-8", "ignore").decode() for part in (question, answer)]
    if not all(part.strip() and "<|" not in part for part in clean):
        return
    rendered = render(tokenizer, [{"role": "user", "content": clean[0]}, {"role": "assistant", "content": clean[1]}])
    assert supervised(tokenizer, rendered) == clean[1] + "<|im_end|>"


def test_exactly_one_bos_is_there_whether_the_template_or_the_tokenizer_adds_it(tokenizer):
    bare = tiny.tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    ids = render(bare, CHAT).input_ids
    assert ids.count(bare.bos_token_id) == 0  # this tokenizer adds none of its own
    doubled = tiny.tokenizer("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="begins with two BOS tokens"):
        render(doubled, CHAT)


def test_a_prompt_may_be_rewritten_since_nothing_in_it_is_supervised():
    chat = [CHAT[0], {"role": "assistant", "content": "<think>hm</think>4"}, CHAT[0]]
    prompt = render_prompt(tiny.tokenizer(FORGETFUL), chat)
    assert "4" in prompt.text
    assert "hm" not in prompt.text
    assert not any(prompt.response_mask)
    assert render_prompt(tiny.tokenizer(), [CHAT[0], {"role": "assistant", "content": ""}, CHAT[0]]).input_ids


def test_template_kwargs_reach_the_template():
    tokenizer = tiny.tokenizer(FORGETFUL)
    assert render_prompt(tokenizer, CHAT[:1], template_kwargs={"enable_thinking": False}).text.endswith(
        "<think></think>"
    )
    assert "<think>" not in render_prompt(tokenizer, CHAT[:1]).text


def test_a_template_that_rejects_a_chat_says_so():
    with pytest.raises(DataError, match="rejects the roles user, user, assistant: Roles must alternate"):
        render(tiny.tokenizer(STRICT), [CHAT[0], *CHAT])


def test_many_chats_render_as_each_alone(tokenizer):
    chats = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "x" * (n % 7 + 1)}]
        for n in range(CHUNK + 9)
    ]
    assert list(render_many(tokenizer, iter(chats))) == [render(tokenizer, chat) for chat in chats]
    assert [row for (row,) in render_rows(tokenizer, chats)] == [render(tokenizer, chat) for chat in chats]
    assert list(render_prompts(tokenizer, chats)) == [render_prompt(tokenizer, chat) for chat in chats]


def test_many_are_rendered_a_chunk_at_a_time(tokenizer):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield CHAT

    stream = render_many(tokenizer, endless())
    next(stream)
    assert len(taken) <= CHUNK + 1


def test_errors_of_many_name_the_chat(tokenizer):
    with pytest.raises(DataError, match=r"^b: message 0 has role 'bot'"):
        list(render_many(tokenizer, [CHAT, [{"role": "bot", "content": "x"}]], names=["a", "b"]))
    with pytest.raises(DataError, match=r"^chat 1: a chat must be a list"):
        list(render_many(tokenizer, [CHAT, "x"]))
    with pytest.raises(DataError, match="supervise must be all_turns, last_turn or all_tokens, found 'first'"):
        render(tokenizer, CHAT, supervise="first")


def test_one_supervise_for_each_chat(tokenizer):
    both = [*CHAT, *CHAT]
    all_turns, last = render_rows(tokenizer, [both, both], supervise=["all_turns", "last_turn"])
    assert sum(all_turns[0].response_mask) == 2 * sum(last[0].response_mask)


def test_a_chat_that_begins_with_its_answer_is_prompted_with_the_header(tokenizer):
    alone = CHAT[1:]
    assert render_prompt(tokenizer, alone).text == "<|im_start|>assistant\n"
    assert supervised(tokenizer, render(tokenizer, alone)) == "It is 4.<|im_end|>"
    strict = tiny.tokenizer(STRICT)
    assert render_prompt(strict, alone).text == "<|im_start|>assistant\n"
    assert supervised(strict, render(strict, alone)) == "It is 4.<|im_end|>"


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("hello", "must be a list of messages, found str"),
        ([], "at least one message, found none"),
        (
            [{"role": "bot", "content": "x"}],
            "message 0 has role 'bot'; available: system, developer, user, assistant, tool",
        ),
        ([{"role": "user", "content": 3}], "message 0 must have a text as content, found int"),
        ([{"role": "system", "content": "x"}], "found only system messages"),
        ([CHAT[0], {"role": "assistant", "content": ""}], "message 1, an assistant turn, is empty once rendered"),
    ],
)
def test_what_is_no_chat_is_refused(tokenizer, chat, message):
    with pytest.raises(DataError, match=message):
        render(tokenizer, chat)
