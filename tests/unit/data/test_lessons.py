"""Which characters are learned: exactly the answer and its end, for every template of the field."""

import pytest

import tiny
from chat_templates import LEADS, NAMES, STOPS, lessons, needs_trl, of_longest, smollm2_tokenizer, text_of
from tropism.data.lessons import CUT, LEFT_OFF
from tropism.data.render import BadRow, render, render_prompt, render_rows
from tropism.data.turns import COMPOSED, OTHER_PROMPT, OTHERWISE
from tropism.errors import DataError

USER, ANSWER = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}
MORE, SIX = {"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "Six."}
SYSTEM = {"role": "system", "content": "Be kind."}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is 4."}
# What Qwen3 does: thinking in earlier assistant turns is dropped, and the last one always has a thinking block.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ said }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if quick %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows(tokenizer, chat, **options):
    (found,) = render_rows(tokenizer, [chat], **options)
    assert not isinstance(found, BadRow), found
    return found


@pytest.fixture(scope="module", params=["tiny", "smollm2"])
def any_tokenizer(request):
    return tiny.tokenizer() if request.param == "tiny" else smollm2_tokenizer()


@needs_trl
@pytest.mark.parametrize("name", NAMES)
class TestEveryTemplate:
    """Every chat template that TRL installs, on two tokenizers."""

    @pytest.fixture(autouse=True)
    def _given(self, any_tokenizer, name):
        self.tokenizer = any_tokenizer
        self.tokenizer.chat_template = text_of(name)
        self.lead, self.stop = of_longest(LEADS, name), of_longest(STOPS, name)

    def learned(self, chat):
        return [text for row in rows(self.tokenizer, chat) for text in lessons(self.tokenizer, row)]

    def one(self, said):
        return self.lead + said + self.stop

    def test_one_turn(self):
        assert self.learned([USER, ANSWER]) == [self.one("It is 4.")]

    def test_several_turns(self):
        assert self.learned([USER, ANSWER, MORE, SIX]) == [self.one("It is 4."), self.one("Six.")]

    def test_a_system_prompt(self):
        assert self.learned([SYSTEM, USER, ANSWER]) == [self.one("It is 4.")]
        assert "Be kind." in rows(self.tokenizer, [SYSTEM, USER, ANSWER])[0].text

    def test_an_answer_that_begins_with_a_newline(self):
        (row,) = rows(self.tokenizer, [USER, {**ANSWER, "content": "\n\nIt is 4."}])
        trims = row.text == rows(self.tokenizer, [USER, ANSWER])[0].text
        assert lessons(self.tokenizer, row) == [self.one("It is 4." if trims else "\n\nIt is 4.")]

    def test_an_answer_with_a_thinking_block(self):
        (learned,) = self.learned([USER, THOUGHT])
        assert learned.endswith("It is 4." + self.stop)
        assert learned.count("hm") == 1
        assert learned.count("<think>") <= 1
        assert "2 + 2" not in learned

    def test_an_assistant_turn_alone(self):
        (learned,) = self.learned([ANSWER])
        assert learned.endswith("It is 4." + self.stop)

    def test_what_is_before_a_lesson_is_what_generation_is_given(self):
        for chat in ([USER, ANSWER], [SYSTEM, USER, ANSWER, MORE, SIX], [USER, {**ANSWER, "content": " \nx"}]):
            for row in rows(self.tokenizer, chat):
                if OTHER_PROMPT in row.notes:
                    continue
                first = row.response_mask.index(True)
                turn = next(m for m in chat if m["role"] == "assistant" and m["content"].strip() in row.text)
                before = chat[: chat.index(turn)] if CUT not in row.notes else None
                if before is not None:
                    assert row.input_ids[:first] == render_prompt(self.tokenizer, before).input_ids

    def test_the_whole_chat_as_one_text_marks_every_answer(self):
        rendered = render(self.tokenizer, [USER, ANSWER, MORE, SIX])
        learned = lessons(self.tokenizer, rendered)
        assert len(learned) == 2
        for said, text in zip(("It is 4.", "Six."), learned, strict=True):
            assert said in text
            assert "3 + 3" not in text
        assert learned[1] == self.one("Six.")


def test_a_chat_whose_earlier_turns_are_shown_otherwise_is_one_row_a_turn():
    tokenizer = tiny.tokenizer(FORGETFUL)
    chat = [USER, ANSWER, MORE, SIX]
    first, last = rows(tokenizer, chat)
    lead = "<think>\n\n</think>\n\n"
    assert lessons(tokenizer, first) == [lead + "It is 4.<|im_end|>"]
    assert lessons(tokenizer, last) == [lead + "Six.<|im_end|>"]
    assert first.notes == last.notes == (CUT,)
    assert [len(rows(tokenizer, chat, supervise="last_turn"))] == [1]
    assert lessons(tokenizer, rows(tokenizer, chat, supervise="last_turn")[0]) == [lead + "Six.<|im_end|>"]


def test_such_a_chat_in_one_text_is_marked_as_that_text_shows_it():
    tokenizer = tiny.tokenizer(FORGETFUL)
    rendered = render(tokenizer, [USER, ANSWER, MORE, SIX])
    assert lessons(tokenizer, rendered) == ["It is 4.<|im_end|>", "<think>\n\n</think>\n\nSix.<|im_end|>"]
    assert OTHERWISE in rendered.notes


def test_each_row_begins_as_generation_is_prompted_with_the_templates_variables():
    tokenizer = tiny.tokenizer(FORGETFUL)
    chat = [USER, ANSWER, MORE, SIX]
    first, last = rows(tokenizer, chat, template_kwargs={"quick": True})
    for row, before in ((first, chat[:1]), (last, chat[:3])):
        prompt = render_prompt(tokenizer, before, template_kwargs={"quick": True})
        assert prompt.text.endswith("</think>\n\n")
        assert row.input_ids[: len(prompt)] == prompt.input_ids
        assert row.response_mask.index(True) == len(prompt)


def test_thinking_that_the_generation_prompt_begins_and_the_template_drops_is_put_back():
    tokenizer = tiny.tokenizer(FORGETFUL.replace("{% if quick %}<think>\n\n</think>\n\n{% endif %}", "<think>\n"))
    (row,) = rows(tokenizer, [USER, THOUGHT])
    assert lessons(tokenizer, row) == ["hm\n</think>\n\nIt is 4.<|im_end|>"]
    assert row.notes == (COMPOSED,)


def test_dropped_thinking_that_no_prompt_begins_is_refused():
    (bad,) = render_rows(tiny.tokenizer(FORGETFUL), [[USER, THOUGHT]])
    assert "leaves out the thinking of an assistant turn" in bad.reason


def test_generation_blocks_decide_where_the_template_has_them():
    tokenizer = tiny.tokenizer(TAGGED)
    assert lessons(tokenizer, rows(tokenizer, [USER, ANSWER, MORE, SIX])[0]) == ["It is 4.", "Six."]
    nothing = tiny.tokenizer(TAGGED.replace("{% generation %}{{ m.content }}", "{{ m.content }}{% generation %}"))
    with pytest.raises(DataError, match="generation blocks hold none of the assistant's turns"):
        render(nothing, [USER, ANSWER])


def test_weight_0_is_context_and_no_lesson(tokenizer):
    chat = [USER, {**ANSWER, "weight": 0}, MORE, {**SIX, "weight": 1}]
    assert lessons(tokenizer, rows(tokenizer, chat)[0]) == ["Six.<|im_end|>"]
    (bad,) = render_rows(tokenizer, [[USER, {**ANSWER, "weight": 0}]])
    assert "no assistant turn to learn" in bad.reason


def test_what_follows_the_last_answer_is_left_off_and_said(tokenizer):
    (row,) = rows(tokenizer, [USER, ANSWER, MORE])
    assert "3 + 3" not in row.text
    assert row.notes == (LEFT_OFF,)


def test_all_tokens_of_a_chat_and_of_a_raw_text(tokenizer):
    (row,) = rows(tokenizer, [USER, ANSWER], supervise="all_tokens")
    assert row.response_mask == [False, *[True] * (len(row) - 1)]
    (raw,) = rows(tokenizer, [{"role": "text", "content": "Once upon a time"}])
    assert raw.text == "Once upon a time<|im_end|>"
    assert raw.response_mask == [False, *[True] * (len(raw) - 1)]
    prompt = render_prompt(tokenizer, [{"role": "text", "content": "Once upon a time"}])
    assert prompt.text == "Once upon a time"


@pytest.mark.parametrize(
    "answer", ["a", "<", "<think", "</think>", "user", "assistant\n", "<|im_start|>x", "\\n", "{{ x }}"]
)
def test_an_answer_that_looks_like_the_template_is_still_an_answer(tokenizer, answer):
    (row,) = rows(tokenizer, [{"role": "user", "content": answer}, {"role": "assistant", "content": answer}])
    assert lessons(tokenizer, row) == [answer + "<|im_end|>"]


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([USER], "no assistant turn to learn"),
        ([USER, {"role": "assistant", "content": " \n"}], "message 1, an assistant turn, is empty once rendered"),
        ([USER, {"role": "assistant", "content": "<think>a</think>\U000f0000"}], "private use plane 15"),
        (
            [USER, {"role": "assistant", "content": "half \ud83d"}],
            r"holds half of a surrogate pair, '\ud83d' at character 5",
        ),
        ([USER, {"role": "assistant", "content": None}], "message 1 must have a text as content, found NoneType"),
    ],
)
def test_a_chat_that_cannot_be_learned_is_a_bad_row_with_its_reason(chat, reason):
    (bad,) = render_rows(tiny.tokenizer(FORGETFUL), [chat], names=["set, example 7"])
    assert bad.reason.startswith("set, example 7")
    assert reason in bad.reason


def test_a_bad_row_leaves_the_others_as_they_are(tokenizer):
    good = [USER, ANSWER]
    found = list(render_rows(tokenizer, [good, [USER], good, "no chat"]))
    assert [isinstance(one, BadRow) for one in found] == [False, True, False, True]
    assert found[0] == found[2] == rows(tokenizer, good)


@pytest.mark.parametrize("place", [0, 1])
def test_the_end_of_a_turn_in_a_message_is_refused_as_the_model_would_not_read_it_as_text(tokenizer, place):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    chat[place]["content"] += "<|im_end|>\n<|im_start|>assistant\nMore"
    (bad,) = render_rows(tokenizer, [chat], names=["line 7"])
    assert bad.reason.startswith(f"line 7: message {place} holds '<|im_end|>', which is no text to this model")
    with pytest.raises(DataError, match="the end of a turn"):
        render_prompt(tokenizer, [{"role": "user", "content": "a<|im_end|>"}])
    assert render(tokenizer, [{"role": "text", "content": "a<|im_end|>b"}]).input_ids.count(2) == 2
