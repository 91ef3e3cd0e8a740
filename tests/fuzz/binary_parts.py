"""Files as lists of parts that know their place (count, length, offset, ...), and mutations that use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.fuzz import hostile_values

NUMBER_KINDS = frozenset({"count", "length", "type", "offset", "number", "dimension"})


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a binary file. `kind` is one of NUMBER_KINDS (little-endian), "text", "magic" or "data"."""

    kind: str
    data: bytes


def join(parts: Sequence[Part]) -> bytes:
    """The file."""
    return b"".join([part.data for part in parts])


def mutate_parts(parts: Sequence[Part], rng: Random) -> list[Part]:
    """Change one to three parts. Kinds are equally likely, so that rare counts are not lost among many texts."""
    changed = list(parts)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if changed:
            rng.choice(_MUTATIONS)(changed, rng)
    return changed


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Change bytes without knowledge of their place: flips, cuts, insertions, copies within the file."""
    if not data:
        return rng.randbytes(rng.randrange(1, 64))
    place = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:  # a flipped bit
            return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        case 1:  # a truncated tail
            return data[:place]
        case 2:  # a lost middle
            return data[:place] + data[place + rng.randrange(1, 65) :]
        case 3:  # something inserted
            return data[:place] + hostile_values.text(rng) + data[place:]
        case 4:  # a number of some width written over
            width = rng.choice((1, 2, 4, 8))
            value = hostile_values.number(rng) % (1 << 8 * width)
            return data[:place] + value.to_bytes(width, "little") + data[place + width :]
        case _:  # a stretch copied elsewhere
            source, length = rng.randrange(len(data)), rng.randrange(1, 129)
            return data[:place] + data[source : source + length] + data[place:]


def _pick(parts: Sequence[Part], rng: Random, kinds: frozenset[str] | None = None) -> int | None:
    present = sorted({part.kind for part in parts if kinds is None or part.kind in kinds})
    if not present:
        return None
    kind = rng.choice(present)
    return rng.choice([index for index, part in enumerate(parts) if part.kind == kind])


def _set_number(parts: list[Part], rng: Random) -> None:
    index = _pick(parts, rng, NUMBER_KINDS)
    if index is None:
        return
    part = parts[index]
    width = len(part.data)
    value = int.from_bytes(part.data, "little")
    value = hostile_values.nearby(value, rng) if rng.random() < 0.4 else hostile_values.number(rng)
    parts[index] = Part(part.kind, (value % (1 << 8 * width)).to_bytes(width, "little"))


def _set_text(parts: list[Part], rng: Random) -> None:
    index = _pick(parts, rng, frozenset({"text", "magic"}))
    if index is None:
        return
    data = hostile_values.text(rng)
    parts[index] = Part("text", data)
    if index and parts[index - 1].kind == "length" and rng.random() < 0.8:  # mostly with the true length
        parts[index - 1] = Part("length", len(data).to_bytes(len(parts[index - 1].data), "little"))


def _copy_text(parts: list[Part], rng: Random) -> None:
    """Give two names the same text."""
    source, target = _pick(parts, rng, frozenset({"text"})), _pick(parts, rng, frozenset({"text"}))
    if source is None or target is None or not (source and target):
        return
    if parts[source - 1].kind == parts[target - 1].kind == "length":
        parts[target - 1 : target + 1] = parts[source - 1 : source + 1]


def _drop(parts: list[Part], rng: Random) -> None:
    index = _pick(parts, rng)
    if index is not None:
        del parts[index : index + rng.choice((1, 1, 2, 5))]


def _repeat(parts: list[Part], rng: Random) -> None:
    index = _pick(parts, rng)
    if index is not None:
        end = index + rng.choice((1, 2, 5))
        parts[end:end] = parts[index:end] * rng.choice((1, 1, 3, 50))


def _swap(parts: list[Part], rng: Random) -> None:
    first, second = _pick(parts, rng), _pick(parts, rng)
    if first is not None and second is not None:
        parts[first], parts[second] = parts[second], parts[first]


def _scramble(parts: list[Part], rng: Random) -> None:
    index = _pick(parts, rng, frozenset({"data", "text"}))
    if index is not None:
        data = parts[index].data
        noise = rng.choice((rng.randbytes(len(data)), b"\xff" * len(data), b"\x00\x7e" * (len(data) // 2)))
        parts[index] = Part(parts[index].kind, noise)


def _cut(parts: list[Part], rng: Random) -> None:
    index = _pick(parts, rng)
    if index is not None:
        data = parts[index].data
        parts[index:] = [Part(parts[index].kind, data[: rng.randrange(len(data) + 1)])]


_MUTATIONS: tuple[Callable[[list[Part], Random], None], ...] = (
    _set_number,
    _set_number,
    _set_number,
    _set_text,
    _copy_text,
    _drop,
    _repeat,
    _swap,
    _scramble,
    _cut,
)
