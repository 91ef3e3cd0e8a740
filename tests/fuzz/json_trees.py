"""JSON documents that can also say what JSON forbids (repeated keys, raw literals), and their mutations."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz import hostile_values
from tests.fuzz.binary_parts import mutate_bytes

Tree = Any
"""What json.loads returns, with the classes below in the places that were changed."""


class Raw(str):
    """Text that is written as it is, valid or not."""

    __slots__ = ()


class Pairs(list[tuple[str, Tree]]):
    """An object whose keys may repeat."""


class Items(list[Tree]):
    """An array that was changed or whose elements were."""


def dump(tree: Tree) -> bytes:
    """The document; surrogate escapes in raw text become the bytes that they stand for."""
    pieces: list[str] = []
    _write(tree, pieces)
    return "".join(pieces).encode("utf-8", "surrogateescape")


def mutate(tree: Tree, rng: Random) -> bytes:
    """Change one to three places of a tree, which itself stays as it is, and sometimes bytes of the document."""
    root = Items([tree])
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_one(root, rng)
    data = dump(root[0])
    if rng.random() < 0.1:
        data = mutate_bytes(data, rng)
    return data


def _write(tree: Tree, pieces: list[str]) -> None:
    if isinstance(tree, Raw):
        pieces.append(tree)
    elif isinstance(tree, Pairs):
        pieces.append("{")
        for index, (key, value) in enumerate(tree):
            pieces += [", " if index else "", json.dumps(key), ": "]
            _write(value, pieces)
        pieces.append("}")
    elif isinstance(tree, Items):
        pieces.append("[")
        for index, value in enumerate(tree):
            pieces.append(", " if index else "")
            _write(value, pieces)
        pieces.append("]")
    else:
        pieces.append(json.dumps(tree))


def _opened(value: Tree) -> Items | Pairs | None:
    """A container as one whose members can be changed, None for anything else."""
    if isinstance(value, (Pairs, Items)):
        return value
    if isinstance(value, dict):
        return Pairs(value.items())
    return Items(value) if isinstance(value, list) else None


def _change_one(root: Items, rng: Random) -> None:
    """Walk from the root to a random place, stopping more often at the leaves, and change it."""
    holder: Items | Pairs = root
    index = 0
    while True:
        inner = _opened(_value(holder, index))
        if not inner or rng.random() < 0.12:
            break
        _set(holder, index, inner)
        holder, index = inner, rng.randrange(len(inner))
    match rng.randrange(8):
        case 0 if holder is not root:
            del holder[index]
        case 1 if holder is not root:
            holder.insert(rng.randrange(len(holder) + 1), holder[index])
        case 2 if isinstance(holder, Pairs):
            holder[index] = (_hostile_key(holder, rng), holder[index][1])
        case 3:
            other = rng.randrange(len(holder))
            holder[index], holder[other] = holder[other], holder[index]
        case _:
            _set(holder, index, hostile(_value(holder, index), rng))


def _value(holder: Items | Pairs, index: int) -> Tree:
    return holder[index][1] if isinstance(holder, Pairs) else holder[index]


def _set(holder: Items | Pairs, index: int, value: Tree) -> None:
    if isinstance(holder, Pairs):
        holder[index] = (holder[index][0], value)
    else:
        holder[index] = value


def _hostile_key(pairs: Pairs, rng: Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(pairs)[0]
    return _text(rng)


def _text(rng: Random) -> str:
    return hostile_values.text(rng).decode("utf-8", rng.choice(("surrogateescape", "replace")))


def hostile(value: Tree, rng: Random) -> Tree:
    """Something in place of `value`, now and then close to it."""
    if type(value) is int and rng.random() < 0.4:
        return rng.choice((value + 1, value - 1, -value, value * 2, float(value), str(value)))
    if type(value) is str and value and rng.random() < 0.4:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(("", value[place:] * 2, _text(rng), "\ud800"))
    return rng.choice(_VALUES)(rng)


_VALUES: tuple[Callable[[Random], Tree], ...] = (
    lambda rng: hostile_values.number(rng),
    lambda rng: -hostile_values.number(rng),
    lambda rng: hostile_values.number(rng),
    _text,
    _text,
    lambda rng: rng.choice((None, True, False, [], {}, "", [[]], [None], {"": None})),
    lambda rng: rng.choice((0.0, -0.0, 0.5, 1e-320, 1e308, -1.5, 3.0)),
    lambda rng: Raw(rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "01", "1.", "0x10", "nul", "'a'"))),
    lambda rng: Raw("9" * rng.choice((20, 400, 4301, 10_000))),
    lambda rng: Raw(rng.choice(('"\\ud800"', '"\\udc80\\u0000"', '"\\x41"', '"\x01"', '"open', '"\\u12"'))),
    lambda rng: Raw("[" * (depth := rng.choice((3, 100, 2000, 100_000))) + "]" * depth),
    lambda rng: Raw('{"a":' * (depth := rng.choice((3, 100, 2000, 50_000))) + "1" + "}" * depth),
    lambda rng: [rng.randrange(-2, 300) for _ in range(rng.choice((1, 4, 5, 1000)))],
    lambda rng: {str(index): index for index in range(rng.choice((1, 3, 500)))},
)
