"""Numbers and texts that break careless parsers; every choice comes from the caller's random generator."""

from __future__ import annotations

from random import Random

NUMBERS = (
    0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 31, 32, 33, 63, 64, 127, 128, 255, 256, 1023, 65535, 65536,
    2**20, 2**21 + 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**47, 2**48, 2**53, 2**61, 2**62,
    2**63 - 1, 2**63, 2**64 - 2**20, 2**64 - 32, 2**64 - 8, 2**64 - 1,
)  # fmt: skip
"""Type ids, block sizes, limits of machine words, and products that overflow them."""

TEXTS = (
    b"",
    b"\x00",
    b" ",
    b"\xff\xfe",
    b"\xc3",  # half of a two-byte character
    b"\xed\xa0\x80",  # a surrogate in UTF-8
    b"\xf4\x90\x80\x80",  # beyond Unicode
    b"\xc0\x80",  # overlong zero
    "\u202e\u0000\ufeff".encode(),
    "ſtrange İı ß".encode(),
    b"..",
    b"../../etc/passwd",
    b"con\x00.gguf",
    b"%s%n{0}{{x}}{%",
    b"\x1b[31m",
    b"a" * 300,
    b"A" * 5000,
    "😀".encode() * 40,
)


def number(rng: Random) -> int:
    """An unsigned 64-bit number, mostly near a limit."""
    if rng.random() < 0.2:
        return rng.getrandbits(rng.choice((4, 8, 16, 32, 64)))
    return (rng.choice(NUMBERS) + rng.choice((0, 0, 0, 1, -1))) % 2**64


def nearby(value: int, rng: Random) -> int:
    """A number that a miscounting writer might have put in place of `value`."""
    changed = rng.choice(
        (value + 1, value - 1, value * 2, value // 2, value + 8, value ^ (1 << rng.randrange(64)), -value)
    )
    return changed % 2**64


def text(rng: Random) -> bytes:
    """Bytes where a parser expects text."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(1, 24))
    return rng.choice(TEXTS)
