"""Encode a conversation so that only the chat template can write control tokens, never the text of a message."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Protocol

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.models.tool_history import call_texts, check_calls

ROLES = ("system", "user", "assistant", "tool")

# Characters that stand for nothing by definition, so a template has no business with them.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))

# with the sign that stands for a space in some vocabularies
_WHITE_SPACE = " \t\r\n\u2581"

Message = Mapping[str, Any]
"""{"role": ..., "content": ...} and what else its role has, see `check_messages`."""

_FIELDS = {
    "system": frozenset(("role", "content")),
    "user": frozenset(("role", "content")),
    "assistant": frozenset(("role", "content", "reasoning_content", "tool_calls")),
    "tool": frozenset(("role", "content", "tool_call_id", "name")),
}
_TEXT_FIELDS = ("reasoning_content", "tool_call_id", "name")


class PromptTokenizer(Protocol):
    """What encoding a prompt needs of a tokenizer."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Token id by the text that means it where control tokens are allowed."""

    def encode(self, text: str, *, allow_special: bool = False, is_continuation: bool = False) -> list[int]:
        """Token ids of a text; without `allow_special` the text of a control token is ordinary text.

        `is_continuation` says that other text stands before this one.
        """


def encode_messages(
    tokenizer: PromptTokenizer,
    render: Callable[..., str],
    messages: Sequence[Message],
    variables: Mapping[str, object] | None = None,
) -> list[int]:
    """Return the token ids of a conversation, ready for the answer.

    `render` applies the chat template to messages, with `variables` as keywords. A text in either that contains the
    text of a control token is rendered with a stand-in for it. What still reads as a control token afterwards was
    written by the template; the rest is encoded as ordinary text. A conversation without such texts is encoded in one
    piece, exactly as the model was trained.

    Raises:
        InputError, UnsupportedError: as `check_messages`.
    """
    check_messages(messages)
    variables = variables or {}
    control = _control_texts(tuple(tokenizer.control_tokens))
    if not control.literals:
        return tokenizer.encode(render(messages, **variables), allow_special=True)
    texts = list(texts_in([*messages, variables]))
    given = _StandIns(control, texts, control.pattern)
    prompt, stand_ins = given.render(render, messages, variables), given
    if any(not control.edges.isdisjoint(text) for text in texts):
        # a template that cuts pieces out of a text may join the halves of a control token in it
        cautious = _StandIns(control, texts, control.pattern_with_edges)
        whole = cautious.render(render, messages, variables)
        if control.pattern.findall(prompt) != control.pattern.findall(whole):
            prompt, stand_ins = whole, cautious
    if not stand_ins.is_needed:
        return tokenizer.encode(prompt, allow_special=True)
    token_ids: list[int] = []
    # a group in the pattern makes split() return the control tokens too, at the odd places
    for index, piece in enumerate(control.pattern.split(prompt)):
        if index % 2:
            token_ids.append(tokenizer.control_tokens[piece])
        elif piece:
            token_ids += tokenizer.encode(stand_ins.restore(piece), is_continuation=index > 0)
    return token_ids


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in a value made of lists and mappings, their keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def message_texts(message: object) -> Iterator[str]:
    """Yield the texts that a message says, however wrong the rest of it is."""
    if isinstance(message, Mapping):
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else [{"text": content}]
        said = [part.get("text") for part in parts if isinstance(part, Mapping)]
        yield from (text for text in (*said, *map(message.get, _TEXT_FIELDS)) if isinstance(text, str))
        yield from call_texts(message)


class _ControlTexts:
    """The texts of a tokenizer's control tokens, longest first, and what finds them whole or in part.

    Tokens that are nothing but white space are left out: some vocabularies have such among their own words.
    `edges` are the characters that begin or end one.
    """

    def __init__(self, literals: Sequence[str]) -> None:
        self.literals = sorted((each for each in literals if each.strip(_WHITE_SPACE)), key=len, reverse=True)
        self.edges = frozenset(literal[end] for literal in self.literals for end in (0, -1))
        self.pattern = _any_of(self.literals)
        self.stood_in = [*self.literals, *sorted(self.edges.difference(self.literals))]
        self.pattern_with_edges = _any_of(self.stood_in)
        self.index = {literal: index for index, literal in enumerate(self.stood_in)}
        self.beginnings = tuple({literal[:end] for literal in self.literals for end in range(1, len(literal))})
        self.endings = tuple({literal[start:] for literal in self.literals for start in range(1, len(literal))})


def _any_of(literals: Sequence[str]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(map(re.escape, literals)) + ")")


# once for each tokenizer: compiling the pattern takes longer than encoding a prompt
_control_texts = lru_cache(maxsize=16)(_ControlTexts)


class _StandIns:
    """Takes what `pattern` finds, control token texts at least, out of message texts and puts it back."""

    def __init__(self, control: _ControlTexts, texts: Sequence[str], pattern: re.Pattern[str]) -> None:
        used = set().union(*texts, *control.literals)
        unused = (chr(code) for code in chain(*_PRIVATE_USE) if chr(code) not in used)
        marks = list(islice(unused, 2))
        if len(marks) < 2:
            raise InputError("the messages use every private-use character of Unicode; remove some")
        self._mark, self._guard = marks
        self.is_needed = False
        self._control = control
        self._pattern = pattern
        self._stand_in = re.compile(f"{self._mark}([0-9]+){self._mark}")

    def render(self, render: Callable[..., str], messages: Sequence[Message], variables: Mapping[str, object]) -> str:
        """Render with every text protected; `is_needed` tells afterwards whether any had to be changed."""
        safe = [self._safe_message(message) for message in messages]
        protect = {"tools": self._safe_tools}
        return render(safe, **{name: protect.get(name, self.protect_all)(value) for name, value in variables.items()})

    def _safe_tools(self, tools: object) -> object:
        """The tools with their texts protected; the fields of a tool are words that templates look for."""
        if not isinstance(tools, list | tuple) or not all(map(_is_function, tools)):
            return self.protect_all(tools)
        return [
            {**tool, "function": {name: self.protect_all(value) for name, value in tool["function"].items()}}
            for tool in tools
        ]

    def _safe_message(self, message: Message) -> Message:
        """The message with its texts protected; roles and the names of fields are words that templates look for."""
        safe = dict(message)
        content = message.get("content")
        if isinstance(content, str):
            safe["content"] = self.protect(content)
        elif content is not None:
            safe["content"] = [{**part, "text": self.protect(part["text"])} for part in content]
        safe.update({name: self.protect(message[name]) for name in _TEXT_FIELDS if name in message})
        if message.get("tool_calls"):
            safe["tool_calls"] = [self._safe_call(call) for call in message["tool_calls"]]
        return safe

    def _safe_call(self, call: Mapping[str, Any]) -> dict[str, object]:
        function = {name: self.protect_all(value) for name, value in call["function"].items()}
        ids = {"id": self.protect(call["id"])} if "id" in call else {}
        return {**call, **ids, "function": function}

    def protect_all(self, value: object) -> object:
        """Return a value made of lists and mappings with every text in it protected."""
        if isinstance(value, str):
            return self.protect(value)
        if isinstance(value, Mapping):
            return {self.protect_all(key): self.protect_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect_all(item) for item in value]
        return value

    def protect(self, text: str) -> str:
        """Return the text with no control token in it, nor half of one at an end that the template could complete."""
        index, given = self._control.index, text
        text = self._pattern.sub(lambda found: f"{self._mark}{index[found[0]]}{self._mark}", text)
        if text.startswith(self._control.endings):
            text = self._guard + text
        if text.endswith(self._control.beginnings):
            text += self._guard
        self.is_needed = self.is_needed or text != given
        return text

    def restore(self, text: str) -> str:
        """Return the text as the message had it."""
        text = text.replace(self._guard, "")
        return self._stand_in.sub(lambda found: self._control.stood_in[int(found[1])], text)


def _is_function(tool: object) -> bool:
    return (
        isinstance(tool, Mapping)
        and tool.keys() == {"type", "function"}
        and tool["type"] == "function"
        and isinstance(tool["function"], Mapping)
        and tool["function"].keys() <= {"name", "description", "parameters"}
    )


def check_messages(messages: Sequence[object]) -> None:
    """Raise unless the messages are a conversation that can be read.

    Raises:
        InputError: they are not a list of {"role": ..., "content": ...} with known roles and text.
        UnsupportedError: a message has fields that its role does not have: beside these two the assistant's has
            "reasoning_content" and "tool_calls", a tool's "tool_call_id" and "name".
    """
    if not messages:
        raise InputError("the conversation is empty; give at least one message")
    for number, message in enumerate(messages, start=1):
        calls = isinstance(message, Mapping) and message.get("role") == "assistant" and message.get("tool_calls")
        if not isinstance(message, Mapping) or not ({"role"} if calls else {"role", "content"}) <= set(message):
            raise InputError(f'message {number} is not {{"role": ..., "content": ...}}: {str(message)[:100]}')
        role = message["role"]
        if role not in ROLES:
            raise InputError(f"message {number} has role {str(role)[:50]!r}; allowed are {', '.join(ROLES)}")
        unknown = sorted(map(str, set(message) - _FIELDS[role]))
        if unknown:
            fields = ", ".join(sorted(_FIELDS[role]))
            raise UnsupportedError(f"message {number} has {str(unknown)[:100]}; those of role {role} have {fields}")
        for name in _TEXT_FIELDS:
            if not isinstance(message.get(name, ""), str):
                raise InputError(f"message {number} has a {name} of type {type(message[name]).__name__}; give text")
        if calls:
            check_calls(message, number)
        if not calls or message.get("content") is not None:
            _check_content(message["content"], number)


def _check_content(content: object, number: int) -> None:
    """Raise unless the content is text, or a list of {"type": "text", "text": ...}."""
    if isinstance(content, str):
        return
    if not isinstance(content, list | tuple):
        raise InputError(f"message {number} has content of type {type(content).__name__}; give text")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind != "text":
            raise UnsupportedError(f"message {number} has content of type {kind[:50]!r}; only text is read")
        if kind != "text" or set(part) != {"type", "text"} or not isinstance(part["text"], str):
            form = '{"type": "text", "text": ...}'
            raise InputError(f"message {number} has the content {str(part)[:100]}; give text, or a list of {form}")
