"""Encode a conversation so that only the chat template can write control tokens, never the text of a message."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Protocol

from subsecond.core.errors import InputError, UnsupportedError

ROLES = ("system", "user", "assistant", "tool")

# Characters that stand for nothing by definition, so a template has no business with them.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))

Message = Mapping[str, str]


class PromptTokenizer(Protocol):
    """What encoding a prompt needs of a tokenizer."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Token id by the text that means it where control tokens are allowed."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text; without `allow_special` the text of a control token is ordinary text."""


def encode_messages(
    tokenizer: PromptTokenizer, render: Callable[[Sequence[Message]], str], messages: Sequence[Message]
) -> list[int]:
    """Return the token ids of a conversation, ready for the answer.

    `render` applies the chat template. A message text that contains the text of a control token is rendered with a
    stand-in for it. What still reads as a control token afterwards was written by the template; the rest is encoded as
    ordinary text. A conversation without such texts is encoded in one piece, exactly as the model was trained.

    Raises:
        InputError: the messages are not a list of {"role": ..., "content": ...} with known roles and text.
        UnsupportedError: a message has fields other than these.
    """
    _check(messages)
    if not tokenizer.control_tokens:
        return tokenizer.encode(render(messages), allow_special=True)
    control = _control_texts(tuple(tokenizer.control_tokens))
    stand_ins = _StandIns(control, [message["content"] for message in messages])
    safe = [{**message, "content": stand_ins.protect(message["content"])} for message in messages]
    if all(before["content"] == after["content"] for before, after in zip(messages, safe, strict=True)):
        return tokenizer.encode(render(messages), allow_special=True)
    token_ids: list[int] = []
    # a group in the pattern makes split() return the control tokens too, at the odd places
    for index, piece in enumerate(control.pattern.split(render(safe))):
        if index % 2:
            token_ids.append(tokenizer.control_tokens[piece])
        elif piece:
            token_ids += tokenizer.encode(stand_ins.restore(piece))
    return token_ids


class _ControlTexts:
    """The texts of a tokenizer's control tokens, longest first, and what finds them whole or in part."""

    def __init__(self, literals: Sequence[str]) -> None:
        self.literals = sorted(literals, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, self.literals)) + ")")
        self.index = {literal: index for index, literal in enumerate(self.literals)}
        self.beginnings = tuple({literal[:end] for literal in literals for end in range(1, len(literal))})
        self.endings = tuple({literal[start:] for literal in literals for start in range(1, len(literal))})


# once for each tokenizer: compiling the pattern takes longer than encoding a prompt
_control_texts = lru_cache(maxsize=16)(_ControlTexts)


class _StandIns:
    """Takes control token texts out of message texts and puts them back."""

    def __init__(self, control: _ControlTexts, texts: Sequence[str]) -> None:
        used = set().union(*texts, *control.literals)
        unused = (chr(code) for code in chain(*_PRIVATE_USE) if chr(code) not in used)
        marks = list(islice(unused, 2))
        if len(marks) < 2:
            raise InputError("the messages use every private-use character of Unicode; remove some")
        self._mark, self._guard = marks
        self._control = control
        self._stand_in = re.compile(f"{self._mark}([0-9]+){self._mark}")

    def protect(self, text: str) -> str:
        """Return the text with no control token in it, nor half of one at an end that the template could complete."""
        index = self._control.index
        text = self._control.pattern.sub(lambda found: f"{self._mark}{index[found[0]]}{self._mark}", text)
        if text.startswith(self._control.endings):
            text = self._guard + text
        if text.endswith(self._control.beginnings):
            text += self._guard
        return text

    def restore(self, text: str) -> str:
        """Return the text as the message had it."""
        text = text.replace(self._guard, "")
        return self._stand_in.sub(lambda found: self._control.literals[int(found[1])], text)


def _check(messages: Sequence[object]) -> None:
    if not messages:
        raise InputError("the conversation is empty; give at least one message")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError(f'message {number} is not {{"role": ..., "content": ...}}: {str(message)[:100]}')
        if message["role"] not in ROLES:
            raise InputError(f"message {number} has role {str(message['role'])[:50]!r}; allowed are {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise InputError(f"message {number} has content of type {type(message['content']).__name__}; give text")
        unknown = sorted(set(message) - {"role", "content"})
        if unknown:
            raise UnsupportedError(f"message {number} has {str(unknown)[:100]}; only role and content are supported")
