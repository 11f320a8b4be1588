"""How a response opens, in plain words: marks, labels, emoji and typography taken off, contractions written out."""

import html
import re
import unicodedata

OPENING = 1_500
"""Characters of a response that are read; a refusal says so early."""

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ´′＇ʹ‛", "'") | dict.fromkeys("“”„‟«»″", '"'))
_BACKTICK_APOSTROPHE = re.compile(r"(?<=[a-z])`(?=[a-z])")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad\ufe0f]")
_TAGS = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,11}(?:\s[^<>]{0,80})?/?>")
_FENCE = re.compile(r"^\s*(?:```|~~~)\w{0,12}[ ]*\n(.*?)\n?\s*(?:```|~~~)\s*$", re.DOTALL)
_EMPHASIS = re.compile(r"\*+|~~+|`+|(?<![a-z0-9])_+|_+(?![a-z0-9])", re.IGNORECASE)
_STAGE_DIRECTION = re.compile(r"^\s*\*[^*\n]{1,40}\*\s+")  # *sighs*
_ROLE = re.compile(
    r"^(?:ai assistant|ai model|assistant|ai|bot|chatbot|model|system|answer|response|reply|output|a|gpt|llm)\s*:\s+"
)
_ITEM = re.compile(r"^[ \t]*(?:[-*•+]|[0-9]{1,2}[.)]|[a-z][.)])[ \t]+", re.MULTILINE)
_LINE_MARKS = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>+[ \t]*)+", re.MULTILINE)
_WRAPPERS = {"(": ")", "[": "]", "{": "}", '"': '"', "'": "'"}

_CONTRACTIONS = tuple(
    (re.compile(rf"\b(?:{short})\b"), long)
    for short, long in (
        ("can't|cant|can not", "cannot"),
        ("won't|wont", "will not"),
        ("shan't", "will not"),
        ("i'm|im", "i am"),
        ("i'd", "i would"),
        ("i'll", "i will"),
        ("i've|ive", "i have"),
        ("we're", "we are"),
        ("we'll", "we will"),
        ("it's", "it is"),
        ("that's|thats", "that is"),
        ("there's", "there is"),
        ("what's", "what is"),
        ("you're|youre", "you are"),
        ("let's", "let us"),
        (r"(do|does|did|could|would|should|is|are|was|must|have|has)(?:n't|nt)", r"\1 not"),
    )
)


def normalised(text: str) -> str:
    """Return the opening of a text as refusals are looked for in it.

    Compatibility characters are made plain (full width, no-break spaces), quotes straight, case folded, white space
    single; code fences, HTML tags, Markdown, headings, a single list mark, an "Assistant:", opening emoji and brackets
    or quotes around the whole are taken off; contractions are written out, with or without their apostrophe. A
    quotation that ends before the text does keeps its mark, since somebody else is speaking.

    >>> normalised(' **I’m  SORRY**, but I can\\u00a0not.'), normalised('"I can\\'t," she said.')
    ('i am sorry, but i cannot.', '"i cannot," she said.')
    """
    text = text[: 4 * OPENING]
    if "&" in text:
        text = html.unescape(text)
    # Before NFKC, which makes a space and an accent of ´.
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES)
    text = _BACKTICK_APOSTROPHE.sub("'", _INVISIBLE.sub("", text).casefold())
    fenced = _FENCE.match(text)
    text = _TAGS.sub(" ", fenced[1] if fenced else text)
    if len(_ITEM.findall(text)) == 1:
        text = _ITEM.sub("", text, count=1)
    text = _LINE_MARKS.sub("", _STAGE_DIRECTION.sub("", text))
    text = _unwrapped(_EMPHASIS.sub("", text).strip())
    text = _ROLE.sub("", _after_symbols(text))
    text = " ".join(_unwrapped(_after_symbols(_without_emoji(text))).split())
    for short, long in _CONTRACTIONS:
        text = short.sub(long, text)
    return text[:OPENING]


def _after_symbols(text: str) -> str:
    """The text without the emoji, dashes and signs that it opens with."""
    place = 0
    while place < len(text) and unicodedata.category(text[place]) in ("So", "Sk", "Sm", "Pd", "Po", "Zs", "Cc", "Mn"):
        if text[place] in "\"'/\\#@%":
            break
        place += 1
    return text[place:]


def _without_emoji(text: str) -> str:
    return "".join(" " if unicodedata.category(character) in ("So", "Sk") else character for character in text)


def _unwrapped(text: str) -> str:
    """The text without the brackets or quotes around the whole of it."""
    while len(text) > 1 and text[-1] == _WRAPPERS.get(text[0]) and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def sentences(text: str) -> list[str]:
    """The sentences of a normalised text, each with its mark at the end.

    >>> sentences("that is a crime. i will not help! ok")
    ['that is a crime.', 'i will not help!', 'ok']
    """
    return [part for part in re.split(r"(?<=[.!?;])\s+", text) if part]
