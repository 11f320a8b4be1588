"""From characters to tokens: prompts as generation is given them, lessons to the token, whatever the tokenizer joins."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import tiny
from chat_templates import lessons
from tropism.data.lessons import Lesson
from tropism.data.render import render, render_prompt
from tropism.data.tokens import APART, Encoder

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MERGES = [("Ċ", "Ċ"), ("Ġ", "Ġ"), (":", "Ġ"), (">", "Ċ"), (".", "Ċ"), ("Ġ", "a")]
USER = {"role": "user", "content": "Why?"}


def fast(inner, template=tiny.TEMPLATE, **tokens):
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", **tokens)
    made.chat_template = template
    return made


def byte_level(pattern=None, template=tiny.TEMPLATE):
    """A byte-level tokenizer that joins white space and some punctuation, pre-tokenised as Qwen or as GPT-2."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [a + b for a, b in MERGES]
    inner = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, MERGES))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern:
        bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bare])
    inner.pre_tokenizer, inner.decoder = split, decoders.ByteLevel()
    return fast(inner, template, additional_special_tokens=["<|im_start|>"])


def spaced(scheme, template=tiny.TEMPLATE):
    """A tokenizer with a space before a text's first word, as Llama 2's."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "▁", *map(chr, range(32, 127)), "\n", "▁a", "▁i"]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("▁", "a"), ("▁", "i")], unk_token="<unk>"))
    if scheme == "legacy":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return fast(inner, template, additional_special_tokens=["<|im_start|>"])


def by_bytes():
    """A tokenizer in Python, without offsets."""
    made = ByT5Tokenizer(eos_token="</s>", extra_ids=0)
    made.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return made


KINDS = {
    "qwen": lambda: byte_level(QWEN),
    "gpt2": lambda: byte_level(),
    "tiny": tiny.tokenizer,
    "metaspace first": lambda: spaced("first"),
    "metaspace always": lambda: spaced("always"),
    "legacy": lambda: spaced("legacy"),
    "python": by_bytes,
}


@pytest.fixture(scope="module", params=KINDS)
def any_kind(request):
    return KINDS[request.param]()


ANSWERS = ["a", "\na", "\n\n a", " a", "  a", "\n", ". ", "It is 4.\n", ": ", "\ta", "é", "🙂 a", "a\n\n\nb"]


@pytest.mark.parametrize("answer", [a for a in ANSWERS if a.strip()])
def test_the_prompts_ids_then_exactly_the_answer_and_its_end(any_kind, answer):
    chat = [USER, {"role": "assistant", "content": answer}]
    if answer in ("é", "🙂 a", "\ta") and "▁" in any_kind.get_vocab():
        pytest.skip("this tokenizer has no token for it")
    if answer != answer.rstrip() and not any_kind.is_fast:
        pytest.skip("this tokenizer's end token swallows the white space before it")
    rendered, prompt = render(any_kind, chat), render_prompt(any_kind, chat)
    assert rendered.input_ids[: len(prompt)] == prompt.input_ids
    assert rendered.response_mask.index(True) == len(prompt)
    (learned,) = lessons(any_kind, rendered)
    assert learned.lstrip(" ") == (answer + any_kind.eos_token).lstrip(" ")


@pytest.mark.parametrize("kind", ["qwen", "gpt2"])
@settings(max_examples=150, deadline=None)
@given(st.text("a\n :.é🙂", min_size=1, max_size=8).filter(str.strip), st.text("a\n :.", min_size=1, max_size=6))
def test_ids_are_the_prompts_and_then_the_answers_own(kind, answer, question):
    tokenizer = KINDS[kind]()
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rendered, prompt = render(tokenizer, chat), render_prompt(tokenizer, chat)
    own = tokenizer(rendered.text[len(prompt.text) :], add_special_tokens=False)["input_ids"]
    assert rendered.input_ids == prompt.input_ids + own
    assert lessons(tokenizer, rendered) == [answer + "<|im_end|>"]


def test_a_newline_that_the_tokenizer_joins_to_the_header_is_told():
    chat = [USER, {"role": "assistant", "content": "\na"}]
    joined = byte_level(QWEN)
    whole = joined(render(joined, chat).text, add_special_tokens=False)["input_ids"]
    rendered = render(joined, chat)
    assert rendered.input_ids != whole
    assert APART in rendered.notes
    plain = [USER, {"role": "assistant", "content": "a"}]
    assert render(joined, plain).notes == ()
    assert render(joined, plain).input_ids == joined(render(joined, plain).text, add_special_tokens=False)["input_ids"]


def test_a_newline_that_the_tokenizer_joins_to_the_end_of_turn_is_not_learned():
    words = tiny.TEMPLATE.replace("<|im_end|>", "<end>")
    tokenizer = byte_level(QWEN, words)
    rendered = render(tokenizer, [USER, {"role": "assistant", "content": "a."}])
    assert lessons(tokenizer, rendered) == ["a.<end>"]
    assert rendered.text.endswith("<end>\n")


def test_a_space_before_the_first_word_of_a_text_is_not_put_inside_one():
    tokenizer = spaced("legacy")
    ((ids, mask, apart),) = Encoder(tokenizer).encode([Lesson("a a", ((2, 3),))], ["x"])
    assert apart
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁a", "▁", "a"]
    assert mask == [False, False, True]


def test_an_encoder_remembers_short_headers_and_no_prompts(tokenizer):
    encoder = Encoder(tokenizer)
    text = "<|im_start|>user\n" + "x" * 500
    encoder.encode([Lesson(text, ((17, 20),)), Lesson(text, ((300, 400),))], ["a", "b"])
    assert list(encoder._known) == ["user\n"]


def test_a_tokenizer_that_ends_texts_with_what_begins_others_puts_nothing_before_them():
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", pair="$A $B", special_tokens=[("<|im_end|>", 2)]
    )
    rendered = render(tokenizer, [USER, {"role": "assistant", "content": "So."}])
    assert tokenizer.decode(rendered.input_ids) == rendered.text
