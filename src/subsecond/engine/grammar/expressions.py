"""Regular expressions as the compiler takes them, the gist of its errors, and a vocabulary of bytes to try it on."""

from __future__ import annotations

from functools import lru_cache

from llguidance import LLTokenizer, regex_to_lark

MAX_REASON_CHARS = 200


@lru_cache(maxsize=1)
def byte_vocabulary() -> LLTokenizer:
    """A vocabulary with one token for each byte."""
    return LLTokenizer("byte")


def lark_expression(regex: str) -> str:
    """An expression as Lark text. Anchors at its ends are left out: it has to match the whole answer anyway."""
    text = regex.removeprefix("^")
    if text.endswith("$") and not _is_escaped(text, len(text) - 1):
        text = text[:-1]
    return f"/{regex_to_lark(text, 'd')}/" if text else '""'


def reason_of(error: str) -> str:
    """The gist of an error of the compiler: without places in text that nobody wrote, or excerpts of it."""
    lines = [line.strip() for line in error.splitlines()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    first = told[0] if told else (lines[0] if lines else "")
    for lead in ("failed to compile JSON schema: ",):
        first = first.partition(lead)[2] or first
    return first[:MAX_REASON_CHARS]


def _is_escaped(text: str, place: int) -> bool:
    num_slashes = len(text[:place]) - len(text[:place].rstrip("\\"))
    return num_slashes % 2 == 1
