"""Calls of the native extension with arguments taken from bytes: what its own checks let through must not harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.native.weight_formats import PACKED_FORMATS
from tests.fuzz.binary_parts import mutate_bytes

VOCAB_SIZE, HEAD_DIM, NUM_BLOCKS, MAX_ROWS, MAX_EXPERTS = 40, 8, 3, 4, 3
WIDTH = 256  # a super-block, so that every format fits
ARENA_FLOATS = 4 * WIDTH
_HOSTILE = (-1, 0, 1, 2, 31, 32, 33, 64, 128, 1025, 2**20, 2**31 - 1, -(2**31), 2**62, -(2**63), 2**63 - 1)
NUM_PICKS = 16
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "")
"""The last is no activation: refused, except by a linear."""
_ODD_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan, 1e-5, 0.7, 50.0)


def random_calls(rng: Random) -> bytes:
    """Bytes that `Stream` turns into arguments.

    The first ones choose among what is equally harmless; of the others zero is the harmless choice, so most are zeros.
    """
    data = bytes(rng.randrange(256) if rng.random() < rng.choice((0.01, 0.02, 0.1)) else 0 for _ in range(160))
    return mutate_bytes(rng.randbytes(NUM_PICKS) + data, rng)


class Stream:
    """Takes choices from bytes, zeros after their end."""

    def __init__(self, data: bytes, num_picks: int = 0) -> None:
        self._data = data[num_picks:]
        self._picks = iter(data[:num_picks])
        self._place = 0

    def pick(self) -> int:
        """The next of the first bytes, which choose among what is equally harmless."""
        return next(self._picks, 0)

    def byte(self) -> int:
        """The next byte."""
        self._place += 1
        return self._data[self._place - 1] if self._place <= len(self._data) else 0

    def size(self, harmless: int) -> int:
        """Mostly `harmless`, else a number near it or near a limit."""
        draw = self.byte()
        if draw < 192:
            return harmless
        return harmless + draw - 224 if draw < 230 else _HOSTILE[self.byte() % len(_HOSTILE)]

    def ints(self, harmless: list[int]) -> NDArray[np.int32]:
        """An array that is mostly `harmless`, also in its length."""
        values = [np.int64(self.size(value)).astype(np.int32) for value in harmless]
        draw = self.byte()
        return np.array(values if draw < 240 else values[: draw - 242], np.int32)

    def choice(self, harmless: str, others: tuple[str, ...]) -> str:
        """Mostly `harmless`, else one of the others."""
        draw = self.byte()
        return harmless if draw < 128 else others[draw % len(others)]

    def number(self, harmless: float) -> float:
        """Mostly `harmless`, else an odd value."""
        return float(self.floats(1, harmless)[0])

    def floats(self, count: int, harmless: float | None = None) -> NDArray[np.float32]:
        """Odd values, or mostly `harmless` where it is given."""
        values = []
        for _ in range(count):
            draw = self.byte()
            values.append(_ODD_FLOATS[draw % len(_ODD_FLOATS)] if harmless is None or draw > 220 else harmless)
        return np.array(values, np.float32)


def run_executor(folder: Path) -> None:
    """Build an executor of every operator and run a step."""
    stream = Stream((folder / "calls.bin").read_bytes(), NUM_PICKS)
    isas = _native.available_isas()
    choice, isa_index = divmod(stream.pick(), len(isas))
    kv_types = _native.kv_types(isas[isa_index])
    executor = _native.Executor(
        isa=isas[isa_index],
        kv_type=kv_types[choice % len(kv_types)],
        num_threads=1 + stream.pick() % 2,
        max_rows=min(stream.size(MAX_ROWS), 4096),  # the product's own setting, never a file's
        output_width=stream.size(VOCAB_SIZE),
        all_floats=min(stream.size(ARENA_FLOATS), 2**20),
        selected_floats=min(stream.size(ARENA_FLOATS), 2**20),
        num_layers=stream.size(1),
        num_blocks=min(stream.size(NUM_BLOCKS), 2**10),
        num_kv_heads=min(stream.size(2), 2**10),
        head_dim=stream.size(HEAD_DIM),
    )
    _add_calls(executor, stream)
    executor.finish(_operand(stream, 1, 0))
    num_rows = MAX_ROWS - stream.byte() % MAX_ROWS
    token_ids, positions = stream.ints([3] * num_rows), stream.ints(list(range(num_rows)))
    tables = np.array([stream.ints([index % NUM_BLOCKS])[:1] for index in range(2)], np.int32).reshape(2, -1)
    executor.forward(token_ids, positions, stream.ints([0] * num_rows), tables, stream.ints([num_rows - 1]))


def _operand(stream: Stream, arena: int, slot: int) -> tuple[int, int, int, int]:
    return stream.size(arena), stream.size(slot * WIDTH), stream.size(0), stream.size(2 * WIDTH)


def _add_weight(executor: Any, stream: Stream, num_outputs: int) -> int:
    name = PACKED_FORMATS[stream.pick() % len(PACKED_FORMATS)]
    shape = (stream.size(num_outputs), stream.size(WIDTH))
    num_bytes = _native.packed_size(name, *shape)
    if num_bytes > 2**24:
        raise MemoryError
    index: int = executor.add_weight(name, *shape, np.full(num_bytes, stream.byte(), np.uint8))
    return index


def _add_calls(executor: Any, stream: Stream) -> None:
    head = _add_weight(executor, stream, VOCAB_SIZE)
    vector = executor.add_vector(np.full(max(0, min(stream.size(WIDTH), 2**16)), 0.5, np.float32))
    frequencies = stream.floats(max(0, min(stream.size(HEAD_DIM // 2), 600)), 0.5).tolist()
    rotary = executor.add_rotary(frequencies, stream.pick() > 128, stream.number(1.0))
    executor.add_embed(_operand(stream, 0, 0), stream.size(head), stream.choice("token", ("position", "first", "")))
    calls = _calls(executor, stream, vector, rotary)
    for _ in range(stream.pick() % 4 + 1):
        calls[stream.pick() % len(calls)]()
    executor.add_select_rows(_operand(stream, 1, 1), _operand(stream, 0, 0), stream.size(WIDTH))
    residual = _operand(stream, 1, 0) if stream.byte() > 200 else None
    biases, norm, gated = [stream.size(-1)], stream.size(-1), stream.choice("", ACTIVATIONS)
    weights = [head] * (1 + stream.pick() // 200)
    executor.add_linear(
        _operand(stream, 1, 0), _operand(stream, 1, 1), weights, biases * len(weights), norm, 1e-5, gated, residual
    )
    if stream.pick() > 128:
        executor.add_softcap(_operand(stream, 1, 0), _operand(stream, 1, 0), stream.size(WIDTH), stream.number(15.0))


def _calls(executor: Any, stream: Stream, vector: int, rotary: int) -> tuple[Callable[[], None], ...]:
    def in_all(slot: int = 0) -> tuple[int, int, int, int]:
        return _operand(stream, 0, slot)

    def width() -> int:
        return stream.size(WIDTH)

    def activation() -> str:
        return stream.choice("silu", ACTIVATIONS)

    return (
        lambda: executor.add_normalize(
            in_all(), in_all(), width(), stream.size(vector), stream.size(-1), 1e-5, stream.pick() > 128, width()
        ),
        lambda: executor.add_rope(in_all(), in_all(), width(), stream.size(HEAD_DIM), stream.size(rotary)),
        lambda: _add_attention(executor, stream, rotary),
        lambda: executor.add_gated_activation(in_all(), in_all(), in_all(1), width(), activation()),
        lambda: executor.add_add(in_all(), in_all(), in_all(1), width()),
        lambda: executor.add_activate(in_all(), in_all(), width(), activation()),
        lambda: executor.add_scale(in_all(), in_all(), width(), stream.number(0.5)),
        lambda: executor.add_softcap(in_all(), in_all(), width(), stream.number(30.0)),
        lambda: _add_experts(executor, stream),
    )


def _add_attention(executor: Any, stream: Stream, rotary: int) -> None:
    operands = [_operand(stream, 0, slot) for slot in (0, 0, 0, 1)]
    heads = stream.size(0), stream.size(4), stream.size(2), stream.size(HEAD_DIM)
    scale, used = stream.number(0.3), stream.size(rotary)
    executor.add_attention(
        *operands, *heads, scale, used, stream.size(0), stream.number(0.0), is_causal=stream.pick() < 192
    )


def _add_experts(executor: Any, stream: Stream) -> None:
    num_experts = 1 + stream.pick() % MAX_EXPERTS
    first = _add_weight(executor, stream, WIDTH)
    second = _add_weight(executor, stream, WIDTH) if stream.byte() > 200 else first
    chosen = [second, first, first] + [first] * (3 * num_experts - 3)
    operands = [_operand(stream, 0, slot) for slot in (1, 0, 0)]
    num_chosen = stream.size(1 + stream.pick() % num_experts)
    executor.add_experts(*operands, chosen, num_chosen, stream.pick() > 128, stream.choice("silu", ACTIVATIONS))


def run_sampler(folder: Path) -> None:
    """Draw from arbitrary logits with arbitrary parameters."""
    stream = Stream((folder / "calls.bin").read_bytes())
    rows, vocab_size = 1 + stream.byte() % 3, 1 + stream.byte() * 3
    logits = np.resize(stream.floats(1 + stream.byte() % 40), (rows, vocab_size))
    num_ids = stream.byte() % 5
    offsets = [num_ids * row // rows for row in range(rows + 1)]
    ids = [index * 7 % vocab_size for index in range(num_ids)]
    has_choices, has_masks = stream.byte() > 160, stream.byte() > 128
    forced = stream.ints([-1] * rows) if has_choices else None
    mask_rows = stream.ints([0] * rows) if has_masks else None
    masks = stream.ints([-1] * 2 * -(-vocab_size // 32)).view(np.uint32) if has_masks else None
    masks = masks if masks is None or len(masks) % 2 else masks.reshape(2, -1)
    result = _native.sample(
        logits,
        stream.floats(rows, 0.8),
        stream.ints([0] * rows),
        stream.floats(rows, 1.0),
        stream.floats(rows, 0.0),
        stream.floats(rows, 1.0),
        stream.floats(rows, 0.0),
        stream.floats(rows, 0.0),
        np.arange(rows, dtype=np.uint64),
        stream.ints([0] * rows),
        stream.ints([7] * rows),
        stream.ints(offsets),
        stream.ints(ids),
        stream.floats(num_ids),
        stream.ints(offsets),
        stream.ints(ids),
        stream.ints([1] * num_ids),
        forced,
        mask_rows,
        masks,
        min(stream.size(stream.byte() % 4), 2**20),
        "",
        1 + stream.byte() % 2,
    )
    token_ids = result[0]
    assert ((token_ids >= 0) & (token_ids < vocab_size)).all(), "a token outside of the vocabulary was drawn"
