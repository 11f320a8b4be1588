"""A tokenizer's chat template: which one it is, what it does to a chat, and the text it makes of one.

Templates differ in what they take. Some read parts and render a plain string to nothing (SmolVLM), some reject a system
prompt (Gemma), few know the role `developer`. Each is tried once on a short chat, and chats are put into the form that
it reads.
"""

import importlib.util
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import jinja2

from tropism.data.chats import REASONING
from tropism.data.template_date import freeze, split_date
from tropism.errors import DataError
from tropism.given import read_text
from tropism.names import THINKING_MARKS

log = logging.getLogger(__name__)

DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + '\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant\n' }}{% endif %}"
)
"""Plain text, for a base model whose tokenizer has no chat template: an answer ends in the end-of-sequence token."""
FOLDED = "the chat template takes no system prompt, so it stands at the head of the first user message"
DEVELOPER = "the chat template knows no role 'developer', so its message is a system prompt"
NO_TEMPLATE = "chats are plain text, a line '### User' or '### Assistant' before each message"
NO_STOP = "the chat template ends an assistant turn with nothing, so no stop is learned"

_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What the expressions in a template can raise."""
_MARKUP = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])+")
_TAGS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER, _SYSTEM = "tropism asks", "tropism answers", "tropism instructs"
_KNOWN: WeakKeyDictionary[Any, dict[tuple[str, str], "Facts"]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Facts:
    """What one short chat shows of a template.

    `parts`: it reads a content as a list of parts. `system`, `developer`: it shows a message of that role. `tagged`: it
    has `{% generation %}` blocks. `doubled`: it writes a thinking block of its own before one in the content. `lead`:
    what it writes between the generation prompt and the answer, None where the generation prompt does not begin the
    answered turn. `stop`: what ends an assistant turn; `tail`: all that follows the answer. `suffix`: the generation
    prompt by itself. `ends`: the special tokens in `stop`.
    """

    parts: bool = False
    system: bool = True
    developer: bool = False
    tagged: bool = False
    doubled: bool = False
    lead: str | None = None
    stop: str = ""
    tail: str | None = None
    suffix: str = ""
    ends: tuple[str, ...] = ()


def set_chat_template(tokenizer: Any, template: str | Path) -> None:
    """Give a tokenizer another chat template: a file, or the name of one that TRL installs (`qwen3_training`).

    Raises:
        DataError: there is no such file or name, or the file is not a template.
    """
    text = template_text(template)
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": _QUESTION}], chat_template=text, tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"chat_template: {Path(template).name} is not a Jinja template: {error}") from None
    except _FAILURES:
        # It is one, and rejects this chat: a vision template, say.
        pass
    tokenizer.chat_template = text


def template_text(template: str | Path) -> str:
    """Return the text of a chat template, from a file or by the name of one that TRL installs; `DataError` for neither."""
    path, folder = Path(template), _trl_folder()
    if not path.is_file():
        named = None if folder is None else folder / f"{template}.jinja"
        if named is None or not named.is_file():
            known = "none, since trl is not installed" if folder is None else ", ".join(_names(folder))
            raise DataError(f"chat_template: {str(template)!r} is neither a file nor a known name; available: {known}")
        path = named
    return read_text(path, "chat_template", DataError)


def stop_in(tail: str) -> str:
    """What of the text after an answer ends its turn: up to the first white space that follows something.

    >>> stop_in("<|im_end|>\\n"), stop_in("\\n</s> "), stop_in("<|end|>\\n<|endoftext|>"), stop_in("\\n")
    ('<|im_end|>', '\\n</s>', '<|end|>', '')
    """
    found = re.match(r"\s*\S+", tail)
    return found.group() if found else ""


class ChatTemplate:
    """The chat template of a tokenizer, with the variables that are passed to it."""

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._source: Any = tokenizer.chat_template or DEFAULT_TEMPLATE
        self._variables, self._date = split_date(template_kwargs)
        known = _KNOWN.setdefault(tokenizer, {})
        key = (json.dumps([self._source, self._date]), json.dumps(self._variables, sort_keys=True, default=repr))
        if key not in known:
            self.facts = Facts()
            known[key] = self._find_facts()
            self._say(known[key])
        self.facts = known[key]

    def adapt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Return the messages with the roles that this template takes, and notes of what was changed."""
        notes: list[str] = []
        adapted: list[dict[str, Any]] = []
        held = ""
        for message in messages:
            made = dict(message)
            if made["role"] == "developer" and not self.facts.developer:
                made["role"] = "system"
                notes.append(DEVELOPER)
            if made["role"] == "system" and not self.facts.system:
                held += f"{made['content']}\n\n"
                continue
            if held and made["role"] == "user":
                made["content"] = held + made["content"]
                held = ""
                notes.append(FOLDED)
            if self.facts.doubled and made["role"] == "assistant" and REASONING[0] not in made:
                made = _thinking_apart(made)
            adapted.append(made)
        if held:
            notes.append(FOLDED)
            adapted.insert(0, {"role": "user", "content": held.rstrip("\n")})
        return adapted, tuple(dict.fromkeys(notes))

    def text(self, messages: Sequence[Mapping[str, Any]], where: str, *, generation_prompt: bool = False) -> str:
        """Return the text of a chat.

        Raises:
            DataError: the template rejects the chat.
        """
        try:
            return self._apply(messages, generation_prompt)
        except _FAILURES as error:
            if (written := _with_written_arguments(messages)) is not None and (
                text := self._try(written, generation_prompt)
            ):
                return text
            roles = ", ".join(message["role"] for message in messages)
            name = self._tokenizer.name_or_path
            raise DataError(f"{where}: the chat template of {name!r} rejects the roles {roles}: {error}") from None

    def prompt(self, messages: Sequence[Mapping[str, Any]], where: str) -> str:
        """Return the text that a model is given to answer; for no messages, what stands before a first answer."""
        return self.text(messages, where, generation_prompt=True) if messages else self._opening()

    def accepts(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template renders a chat at all."""
        return bool(self._try(messages))

    def stop_id(self) -> int | None:
        """The id of the token that ends an assistant turn; None where no added token does."""
        stop = self.facts.stop.strip()
        ids = self._tokenizer(stop, add_special_tokens=False)["input_ids"] if stop else []
        return int(ids[-1]) if len(ids) and ids[-1] in self._tokenizer.added_tokens_decoder else None

    def stop_text(self) -> str | None:
        """The mark-up that ends an assistant turn where it is no token of its own."""
        stop = self.facts.stop.strip()
        return stop if self.stop_id() is None and _MARKUP.fullmatch(stop) else None

    @property
    def bos_begins_turns(self) -> bool:
        """Whether the tokenizer's begin-of-sequence token is also what begins a turn."""
        bos = self._tokenizer.bos_token
        return bool(bos) and self.facts.suffix.startswith(bos)

    @property
    def end_of_text(self) -> str:
        """The token that ends a raw text; empty where the tokenizer has none."""
        return self._tokenizer.eos_token or ""

    def generated(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a chat and the characters in the template's `{% generation %}` blocks; nothing where the
        template rejects the chat."""
        from transformers.utils.chat_template_utils import render_jinja_template

        prepared, tools = self._prepared(messages)
        # transformers annotates it as a text.
        make: Any = render_jinja_template
        try:
            texts, spans = make(
                conversations=[prepared],
                tools=tools,
                chat_template=self._tokenizer.get_chat_template(self._given(tools), tools),
                return_assistant_tokens_mask=True,
                **{**self._tokenizer.special_tokens_map, **self._variables},
            )
        except _FAILURES:
            return "", []
        return str(texts[0]), [(int(start), int(end)) for start, end in spans[0]]

    def _apply(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool, **variables: Any) -> str:
        prepared, tools = self._prepared(messages)
        return str(
            self._tokenizer.apply_chat_template(
                prepared,
                tools=tools,
                chat_template=self._given(tools),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **{**self._variables, **variables},
            )
        )

    def _given(self, tools: Any) -> str | None:
        """The template to pass on; None is the tokenizer's own."""
        if not self._tokenizer.chat_template:
            return DEFAULT_TEMPLATE
        return freeze(self._tokenizer.get_chat_template(tools=tools), self._date) if self._date is not None else None

    def _prepared(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
        """The messages as the template reads them, and the tools, which it takes apart."""
        tools = next((message["tools"] for message in messages if "tools" in message), None)
        prepared = []
        for message in messages:
            made = {key: value for key, value in message.items() if key not in ("tools", "weight")}
            if self.facts.parts:
                made["content"] = [{"type": "text", "text": made["content"]}]
            if REASONING[0] in made:
                made |= dict.fromkeys(REASONING, made[REASONING[0]])
            prepared.append(made)
        return prepared, tools

    def _opening(self) -> str:
        """What stands before the answer in a chat that begins with it."""
        suffix = self.facts.suffix
        try:
            text = self._apply([{"role": "assistant", "content": _ANSWER}], False)
        except _FAILURES:
            text = ""
        header = text.partition(_ANSWER)[0] if _ANSWER in text else ""
        if header and suffix in header:
            return header[: header.rindex(suffix) + len(suffix)]
        # The template refuses such a chat: its own begin-of-sequence token, where it writes one, and the header.
        mark = "\ue000"
        begins = self._apply([{"role": "user", "content": _QUESTION}], False, bos_token=mark).startswith(mark)
        return (self._tokenizer.bos_token if begins else "") + suffix

    def _say(self, facts: Facts) -> None:
        """Log, once for a tokenizer, what a reader must know of its template."""
        name = self._tokenizer.name_or_path
        if not self._tokenizer.chat_template:
            log.warning("the tokenizer of %r has no chat template: %s", name, NO_TEMPLATE)
        if facts.tail is not None and not facts.stop:
            log.warning("the tokenizer of %r: %s", name, NO_STOP)

    def _find_facts(self) -> Facts:
        user, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
        tagged = bool(_TAGS.search(json.dumps(self._source)))
        for parts in (False, True):
            self.facts = Facts(parts=parts, tagged=tagged)
            text = self._try([user, answer])
            if _ANSWER in text and _QUESTION in text:
                break
        else:
            return Facts(tagged=tagged)
        asked, question = self._try([user], generation_prompt=True), self._try([user])
        place = text.rindex(_ANSWER)
        tail = text[place + len(_ANSWER) :]
        lead = text[len(asked) : place] if asked and text.startswith(asked) and len(asked) <= place else None
        common = 0
        while common < min(len(asked), len(question)) and asked[common] == question[common]:
            common += 1
        system, developer = (
            _SYSTEM in self._try([{"role": role, "content": _SYSTEM}, user, answer]) for role in ("system", "developer")
        )
        # A template that writes any role it is given does not know this one.
        developer = developer and "developer" in json.dumps(self._source)
        thought = {"role": "assistant", "content": f"<think>\n{_SYSTEM}\n</think>\n\n{_ANSWER}"}
        doubled = self._try([user, thought]).count("<think>") > 1
        stop = stop_in(tail)
        ends = self._special_tokens_in(stop)
        return Facts(parts, system, developer, tagged, doubled, lead, stop, tail, asked[common:], ends)

    def _special_tokens_in(self, text: str) -> tuple[str, ...]:
        """The special tokens in a text; those that mark thinking may stand in a message."""
        added = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        return tuple(token for token in added if token in text and token not in THINKING_MARKS)

    def _try(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool = False) -> str:
        """The text of a chat, empty where the template rejects it."""
        try:
            return self._apply(messages, generation_prompt)
        except _FAILURES:
            return ""


def _thinking_apart(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant message whose content begins with a thinking block, with that as its reasoning."""
    thinking = re.match(r"\s*<think>(.*?)</think>\s*", message["content"], re.DOTALL)
    if thinking is None or not thinking[1].strip():
        return message
    return {**message, "content": message["content"][thinking.end() :], REASONING[0]: thinking[1].strip()}


def _with_written_arguments(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The chat with the arguments of its tool calls as JSON text, for templates that put them in as they are."""
    if not any("tool_calls" in message for message in messages):
        return None
    changed = []
    for message in messages:
        made = dict(message)
        if "tool_calls" in made:
            made["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in made["tool_calls"]
            ]
        changed.append(made)
    return changed


def _trl_folder() -> Path | None:
    """Where TRL keeps its chat templates, found without importing it."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "chat_templates"
    return folder if folder.is_dir() else None


def _names(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.jinja"))
