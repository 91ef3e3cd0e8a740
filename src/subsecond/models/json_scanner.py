"""Follows one JSON value character by character, as a stream brings it, to tell where it ends or breaks."""

from __future__ import annotations

import re
from enum import Enum, auto

MAX_DEPTH = 256

_WHITE_SPACE = " \t\r\n"
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_SCALAR_CHARACTERS = frozenset("0123456789+-.eEtrufalsn")
_MAX_SCALAR_CHARS = 1024
_CLOSERS = {"{": "}", "[": "]"}


class Place(Enum):
    """What a scanner is inside of, or what has to come next."""

    VALUE = auto()
    FIRST_ITEM = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    NEXT = auto()
    STRING = auto()
    ESCAPE = auto()
    HEX_DIGIT = auto()
    SCALAR = auto()
    END = auto()


class JsonScanner:
    """Takes the characters of one JSON value. White space is allowed where JSON has it, also in front.

    depth  objects and lists that are open
    place  see `Place`; a number or word at the top only ends with the character behind it, so it is never at END
    """

    def __init__(self) -> None:
        self.place = Place.VALUE
        self._closers: list[str] = []
        self._is_key = False
        self._scalar = ""
        self._num_digits = 0

    @property
    def depth(self) -> int:
        """Objects and lists that are open."""
        return len(self._closers)

    def push(self, character: str) -> bool:
        """Take the next character; False if no JSON value goes on like this, and then the scanner is of no more use."""
        place = self.place
        if place is Place.STRING:
            return self._push_string(character)
        if place is Place.ESCAPE:
            self.place, self._num_digits = (Place.HEX_DIGIT, 0) if character == "u" else (Place.STRING, 0)
            return character in '"\\/bfnrtu'
        if place is Place.HEX_DIGIT:
            self._num_digits += 1
            self.place = Place.HEX_DIGIT if self._num_digits < 4 else Place.STRING
            return character in "0123456789abcdefABCDEF"
        if place is Place.SCALAR:
            if character in _SCALAR_CHARACTERS:
                self._scalar += character
                return len(self._scalar) <= _MAX_SCALAR_CHARS
            if not _SCALAR.fullmatch(self._scalar):
                return False
            self._end_value()
        return character in _WHITE_SPACE or self._push_structure(character)

    def _push_string(self, character: str) -> bool:
        if character == "\\":
            self.place = Place.ESCAPE
        elif character == '"' and self._is_key:
            self.place = Place.COLON
        elif character == '"':
            self._end_value()
        # half of a surrogate pair is in no decoded text: whoever feeds the scanner uses such as marks
        return character >= " " and not "\ud800" <= character <= "\udfff"

    def _push_structure(self, character: str) -> bool:
        """Take a character outside of strings, numbers and words."""
        place = self.place
        if place in (Place.VALUE, Place.FIRST_ITEM):
            if character == "]" and place is Place.FIRST_ITEM:
                return self._close(character)
            return self._begin_value(character)
        if place in (Place.KEY, Place.FIRST_KEY):
            if character == "}" and place is Place.FIRST_KEY:
                return self._close(character)
            self.place, self._is_key = Place.STRING, True
            return character == '"'
        if place is Place.COLON:
            self.place = Place.VALUE
            return character == ":"
        if place is Place.NEXT and character == ",":
            self.place = Place.KEY if self._closers[-1] == "}" else Place.VALUE
            return True
        return place is Place.NEXT and self._close(character)

    def _begin_value(self, character: str) -> bool:
        if character in _CLOSERS:
            self._closers.append(_CLOSERS[character])
            self.place = Place.FIRST_KEY if character == "{" else Place.FIRST_ITEM
            return len(self._closers) <= MAX_DEPTH
        if character == '"':
            self.place, self._is_key = Place.STRING, False
            return True
        self.place, self._scalar = Place.SCALAR, character
        return character in _SCALAR_CHARACTERS

    def _close(self, character: str) -> bool:
        is_right = self._closers.pop() == character
        self._end_value()
        return is_right

    def _end_value(self) -> None:
        self.place = Place.NEXT if self._closers else Place.END
