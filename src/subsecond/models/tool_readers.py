"""Reads one tool call character by character: its name as soon as it is certain, then its arguments as they come."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Protocol

from subsecond.models.json_scanner import JsonScanner, Place
from subsecond.models.tool_syntax import ARGUMENTS_KEYS, ToolSyntax

NO_ARGUMENTS = "{}"

MAX_HEAD_CHARS = 256

_NO_NAME = frozenset('{}"\n')
_INSIDE = (Place.STRING, Place.ESCAPE, Place.HEX_DIGIT, Place.SCALAR)


class CallReader(Protocol):
    """Reads one call.

    name       of the call, None until it is certain that there is one; from then on nothing can be taken back
    arguments  the pieces of JSON text read since they were last taken out
    is_done    the call has ended with the last character
    """

    name: str | None
    arguments: list[str]
    is_done: bool

    def push(self, character: str) -> bool:
        """Take the next character; False if a call does not go on like this."""


class ObjectReader:
    """Reads a call written as one JSON object, whatever the order of its keys; keys that mean nothing are passed over.

    A name that is none of `names` makes it no call. Arguments that are JSON text inside a string are taken out of it.
    """

    def __init__(self, syntax: ToolSyntax, names: Collection[str]) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self.is_done = False
        self._name_key = syntax.name_key
        self._names = names
        self._scanner = JsonScanner()
        self._key = ""
        self._member: list[str] | None = None
        self._found_name: str | None = None
        self._waiting: str | None = None
        self._has_arguments = False

    def push(self, character: str) -> bool:
        """Take the next character; False if a call does not go on like this."""
        scanner = self._scanner
        before = scanner.place
        is_begin = scanner.depth == 0 and before is Place.VALUE
        if not scanner.push(character):
            return False
        if is_begin:
            return character == "{" or character.isspace()
        if self._member is None:
            self._begin_member(before, character)
            is_good = True
        else:
            is_good = self._go_on(character)
        if is_good and scanner.place is Place.END:
            self.is_done = True
            return self._finish()
        return is_good

    def _begin_member(self, before: Place, character: str) -> None:
        """Begin a key or a value of the call's own object at its first character."""
        is_own = self._scanner.depth - (character in "{[") == 1
        is_solid = not character.isspace() and character != "}"
        if is_own and is_solid and before in (Place.VALUE, Place.KEY, Place.FIRST_KEY):
            self._member = [character]
            self._stream(character)

    def _go_on(self, character: str) -> bool:
        """Add a character to the key or value that is being read."""
        assert self._member is not None
        place = self._scanner.place
        is_over = self._scanner.depth <= 1 and place not in _INSIDE
        # a number or word ends with the character behind it, which is not its own
        if not is_over or self._member[0] in '{["':
            self._member.append(character)
            self._stream(character)
        if not is_over:
            return True
        member, self._member = "".join(self._member), None
        if place is Place.COLON:
            self._key = json.loads(member, strict=False)
            return True
        return self._take_value(member)

    def _take_value(self, member: str) -> bool:
        if self._key == self._name_key and self._found_name is None:
            name = json.loads(member, strict=False)
            if not isinstance(name, str) or name not in self._names:
                return False
            self._found_name = name
            if self._has_arguments:
                self._begin_call(self._waiting or "")
        elif self._key in ARGUMENTS_KEYS and not self._has_arguments:
            self._has_arguments = True
            text = _arguments_of(member)
            if text is None:
                return False
            if self.name is None:
                self._waiting = text
                if self._found_name is not None:
                    self._begin_call(text)
        return True

    def _stream(self, character: str) -> None:
        """Pass arguments on as they come, once the name is known."""
        if self._key not in ARGUMENTS_KEYS or self._has_arguments:
            return
        assert self._member is not None
        if self._found_name is not None and self._member[0] == "{":
            self._begin_call("")
            self.arguments.append(character)

    def _begin_call(self, text: str) -> None:
        self.name = self._found_name
        if text:
            self.arguments.append(text)

    def _finish(self) -> bool:
        if self.name is None and self._found_name is not None:
            self._begin_call(NO_ARGUMENTS)
        return self.name is not None


class NamedReader:
    """Reads a call written as a name, a separator and the arguments as a JSON object."""

    def __init__(self, syntax: ToolSyntax, names: Collection[str]) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self.is_done = False
        self._syntax = syntax
        self._names = names
        self._head = ""
        self._scanner: JsonScanner | None = None

    def push(self, character: str) -> bool:
        """Take the next character; False if a call does not go on like this."""
        if self._scanner is None:
            return self._push_head(character)
        if self._scanner.depth == 0 and character != "{":
            return character.isspace()
        if not self._scanner.push(character):
            return False
        self.name = self._head
        self.arguments.append(character)
        self.is_done = self._scanner.place is Place.END
        return True

    def _push_head(self, character: str) -> bool:
        self._head += character
        if not self._head.endswith(self._syntax.separator):
            return character not in _NO_NAME and len(self._head) <= MAX_HEAD_CHARS
        name = self._head.removesuffix(self._syntax.separator)
        if self._syntax.skipped:
            name = name.partition(self._syntax.skipped)[0]
        self._head, self._scanner = name.strip(), JsonScanner()
        return self._head in self._names


def _arguments_of(member: str) -> str | None:
    """The arguments as JSON text of an object, None if they are nothing of the kind."""
    if member.startswith("{"):
        return member
    value = json.loads(member, strict=False)
    if value is None:
        return NO_ARGUMENTS
    if not isinstance(value, str):
        return None
    scanner, text = JsonScanner(), value.strip()
    is_object = text.startswith("{") and all(map(scanner.push, text))
    return text if is_object and scanner.place is Place.END else None
