"""GGUF files, valid and mutated: whole models, files of nothing but metadata, versions 2 and 3."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from random import Random

from tests import gguf_writer as gguf
from tests.fuzz import file_bundle, hostile_values, tiny_model
from tests.fuzz.binary_parts import Part, join, mutate_bytes, mutate_parts

Entry = tuple[Part, ...]
NUM_BASES = 24
SPLIT_FILES = ("model-00001-of-00002.gguf", "model-00002-of-00002.gguf")

_TOKENIZER_TYPES = {"token_type": gguf.I32, "bos_token_id": gguf.U32, "eos_token_id": gguf.U32}


def mutated_model(rng: Random) -> bytes:
    """A whole model with something wrong, or on rare draws nothing."""
    head, base_entries, base_tensors, data = _base(rng.randrange(NUM_BASES))
    entries, tensors = list(base_entries), list(base_tensors)
    if rng.random() < 0.45:
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice(_MODEL_MUTATIONS)(entries, tensors, rng)
        return join(_assemble(head, entries, tensors, data))
    return _with_mutated_parts(_assemble(head, entries, tensors, data), rng)


def mutated_header(rng: Random) -> bytes:
    """A small file of arbitrary metadata and tensors of every type, with something wrong."""
    entries = [_entry(f"key.{index}".encode(), _random_value(rng, 0)) for index in range(rng.randrange(6))]
    if rng.random() < 0.5:
        alignment = rng.choice((8, 16, 32, 64, 4096, 0, 1, 24, 2**20, 2**31))
        entries.append(_entry(b"general.alignment", _number(gguf.U32, alignment)))
    tensors, data = _odd_tensors(rng)
    return _with_mutated_parts(_assemble(_head(rng.choice((2, 3))), entries, tensors, data), rng)


def mutated_split(rng: Random) -> bytes:
    """A bundle of SPLIT_FILES: a model in two files, with something wrong in one of them."""
    parts = _split(rng.randrange(4))
    index = rng.randrange(2)
    contents: list[bytes | None] = [join(parts[0]), join(parts[1])]
    contents[index] = _with_mutated_parts(_less_data(parts[index], rng), rng)
    if rng.random() < 0.05:
        contents[rng.randrange(2)] = rng.choice((None, contents[0]))
    return file_bundle.pack(contents)


def valid_split(index: int) -> bytes:
    """A bundle of SPLIT_FILES without a fault."""
    return file_bundle.pack([join(part) for part in _split(index)])


def valid_model(index: int) -> bytes:
    """One of NUM_BASES models without a fault."""
    return join(_assemble(*_base(index)))


def _with_mutated_parts(parts: Sequence[Part], rng: Random) -> bytes:
    draw = rng.random()
    if draw < 0.02:
        return join(parts)
    if draw < 0.15:
        return mutate_bytes(join(parts), rng)
    data = join(mutate_parts(parts, rng))
    return mutate_bytes(data, rng) if draw > 0.95 else data


def _less_data(parts: list[Part], rng: Random) -> list[Part]:
    """Mostly without the texts of the vocabulary among the parts that a mutation may choose."""
    if rng.random() < 0.2:
        return parts
    joined: list[Part] = []
    for index, part in enumerate(parts):
        is_inner = index > 1 and part.kind in ("length", "text") and parts[index - 2].kind == part.kind
        if is_inner and joined and joined[-1].kind == "data":
            joined[-1] = Part("data", joined[-1].data + part.data)
        else:
            joined.append(Part("data", part.data) if is_inner else part)
    return joined


@lru_cache(maxsize=4)
def _split(index: int) -> tuple[list[Part], list[Part]]:
    """The two files of a model, as parts."""
    head, entries, tensors, data = _base(index)
    middle = len(tensors) // 2
    cut = int.from_bytes(tensors[middle][-1].data, "little")
    moved = [
        (*tensor[:-1], _u64("offset", int.from_bytes(tensor[-1].data, "little") - cut)) for tensor in tensors[middle:]
    ]

    def numbered(number: int) -> list[Entry]:
        return [
            _entry(b"split.no", _number(gguf.U16, number)),
            _entry(b"split.count", _number(gguf.U16, 2)),
            _entry(b"split.tensors.count", _number(gguf.I32, len(tensors))),
        ]

    first = _assemble(head, [*entries, *numbered(0)], tensors[:middle], data[:cut])
    return first, _assemble(head, numbered(1), moved, data[cut:])


def _head(version: int) -> tuple[Part, ...]:
    return Part("magic", b"GGUF"), Part("number", struct.pack("<I", version))


@lru_cache(maxsize=NUM_BASES)
def _base(index: int) -> tuple[tuple[Part, ...], tuple[Entry, ...], tuple[Entry, ...], bytes]:
    """Head, metadata entries, tensor entries and tensor data of a valid model."""
    rng = Random(f"base {index}")
    family = ("llama", "qwen2")[index % 2]
    pre = ("gpt-2", "smollm", "qwen2", "llama-bpe")[index % 4]
    numbers: dict[str, tuple[int, float]] = {
        "block_count": (gguf.U32, tiny_model.NUM_LAYERS),
        "embedding_length": (gguf.U32, tiny_model.WIDTH),
        "feed_forward_length": (gguf.U32, tiny_model.FF_WIDTH),
        "attention.head_count": (gguf.U32, tiny_model.NUM_HEADS),
        "attention.head_count_kv": (gguf.U32, tiny_model.NUM_KV_HEADS),
        "context_length": (gguf.U32, 128),
        "attention.layer_norm_rms_epsilon": (gguf.F32, 1e-5),
        "rope.freq_base": (gguf.F32, 10000.0),
        "rope.dimension_count": (gguf.U32, tiny_model.HEAD_DIM),
    }
    entries = [_entry(b"general.architecture", _string(family.encode())), _entry(b"general.name", _string(b"tiny"))]
    entries += [_entry(f"{family}.{key}".encode(), _number(*value)) for key, value in numbers.items()]
    entries += _tokenizer_entries({**tiny_model.TOKENIZER, "tokenizer.ggml.pre": pre})
    entries.append(_entry(b"tokenizer.chat_template", _string(tiny_model.CHAT_TEMPLATE.encode())))
    type_ids = (tiny_model.F32, tiny_model.F16, tiny_model.Q4_0, tiny_model.Q4_1, tiny_model.Q8_0, tiny_model.Q5_0)
    tensors, data = [], b""
    for name, shape in tiny_model.shapes(family).items():
        type_id = tiny_model.F32 if len(shape) == 1 else rng.choice(type_ids)
        tensors.append(_tensor(name.encode(), shape, type_id, len(data)))
        data += tiny_model.tensor_bytes(type_id, math.prod(shape), rng)
        data += bytes(-len(data) % 32)
    return _head(2 + index // 2 % 2), tuple(entries), tuple(tensors), data


def _assemble(head: Sequence[Part], entries: Sequence[Entry], tensors: Sequence[Entry], data: bytes) -> list[Part]:
    parts = [*head, _u64("count", len(tensors)), _u64("count", len(entries))]
    for group in (entries, tensors):
        for entry in group:
            parts += entry
    size = sum(len(part.data) for part in parts)
    return [*parts, Part("data", bytes(-size % 32)), Part("data", data)]


def _u64(kind: str, value: int) -> Part:
    return Part(kind, struct.pack("<Q", value % 2**64))


def _u32(kind: str, value: int) -> Part:
    return Part(kind, struct.pack("<I", value % 2**32))


def _text(value: bytes) -> Entry:
    return _u64("length", len(value)), Part("text", value)


def _entry(key: bytes, value: Entry) -> Entry:
    return (*_text(key), *value)


def _string(value: bytes) -> Entry:
    return (_u32("type", gguf.STRING), *_text(value))


def _number(value_type: int, value: float) -> Entry:
    code = "<" + gguf.NUMBER_FORMATS[value_type]
    if value_type not in (gguf.F32, gguf.F64):
        value = int(value) % (1 << 8 * struct.calcsize(code))
        code = code.upper()
    return _u32("type", value_type), Part("number", struct.pack(code, value))


def _array(element_type: int, elements: Sequence[Entry]) -> Entry:
    head = (_u32("type", gguf.ARRAY), _u32("type", element_type), _u64("count", len(elements)))
    return sum(elements, head)


def _tokenizer_entries(metadata: Mapping[str, object]) -> list[Entry]:
    entries = []
    for key, value in metadata.items():
        value_type = _TOKENIZER_TYPES.get(key.removeprefix("tokenizer.ggml."), gguf.STRING)
        if isinstance(value, list) and value_type == gguf.STRING:
            parts: list[Part] = [_u32("type", gguf.ARRAY), _u32("type", gguf.STRING), _u64("count", len(value))]
            for each in value:
                parts += _text(each.encode())
            entries.append(_entry(key.encode(), tuple(parts)))
        elif isinstance(value, list):
            body = Part("data", struct.pack(f"<{len(value)}i", *value))
            head = (_u32("type", gguf.ARRAY), _u32("type", value_type), _u64("count", len(value)))
            entries.append(_entry(key.encode(), (*head, body)))
        elif isinstance(value, int):
            entries.append(_entry(key.encode(), _number(value_type, value)))
        else:
            entries.append(_entry(key.encode(), _string(str(value).encode())))
    return entries


def _tensor(name: bytes, shape: Sequence[int], type_id: int, offset: int) -> Entry:
    dims = [_u64("dimension", size) for size in reversed(shape)]
    return (*_text(name), _u32("count", len(dims)), *dims, _u32("type", type_id), _u64("offset", offset))


def _odd_tensors(rng: Random) -> tuple[list[Entry], bytes]:
    tensors, data = [], b""
    for index in range(rng.randrange(5)):
        type_id = rng.choice((*tiny_model.BLOCKS, *tiny_model.SUPER_BLOCKS))
        block = tiny_model.BLOCKS[type_id][0] if type_id in tiny_model.BLOCKS else 256
        shape = [block * rng.randrange(1, 3)] + [rng.randrange(1, 4) for _ in range(rng.randrange(4))]
        tensors.append(_tensor(f"t{index}".encode(), shape[::-1], type_id, len(data)))
        data += tiny_model.tensor_bytes(type_id, math.prod(shape), rng)
        data += bytes(-len(data) % 32)
    return tensors, data


def _random_value(rng: Random, depth: int) -> Entry:
    draw = rng.randrange(8)
    if draw < 3:
        value_type = rng.choice(tuple(gguf.NUMBER_FORMATS))
        if value_type in (gguf.F32, gguf.F64):
            return _number(value_type, rng.choice((0.0, -1.5, math.inf, math.nan, 1e-30)))
        return _number(value_type, hostile_values.number(rng))
    if draw < 5:
        return _string(hostile_values.text(rng))
    if draw == 5 and depth < 6:
        inner = [_random_value(rng, depth + 1)[1:] for _ in range(rng.randrange(3))]
        return _array(rng.choice((gguf.ARRAY, gguf.STRING, gguf.U8)), inner)
    if draw == 6:
        depth = rng.choice((2, 3, 4, 5, 200))
        nested = (_u32("type", gguf.ARRAY), _u64("count", 1)) * depth
        return (_u32("type", gguf.ARRAY), *nested, _u32("type", gguf.U8), _u64("count", 0))
    return _array(gguf.STRING, [_text(hostile_values.text(rng)) for _ in range(rng.randrange(20))])


Mutation = Callable[[list[Entry], list[Entry], Random], None]


def _change_value(entries: list[Entry], tensors: list[Entry], rng: Random) -> None:
    index = rng.randrange(len(entries))
    entries[index] = (*entries[index][:2], *_random_value(rng, 0))


def _change_number(entries: list[Entry], tensors: list[Entry], rng: Random) -> None:
    """Another number of the same type: files that parse and mean nonsense."""
    numeric = [index for index, entry in enumerate(entries) if len(entry) == 4 and entry[3].kind == "number"]
    if numeric:
        index = rng.choice(numeric)
        *head, part = entries[index]
        value = hostile_values.number(rng) % (1 << 8 * len(part.data))
        entries[index] = (*head, Part("number", value.to_bytes(len(part.data), "little")))


def _change_text(entries: list[Entry], tensors: list[Entry], rng: Random) -> None:
    """Another string value, or another element of an array of strings."""
    index = rng.randrange(len(entries))
    entry = list(entries[index])
    places = [place for place in range(3, len(entry)) if entry[place].kind == "text"]
    if places:
        for _ in range(rng.choice((1, 1, 30))):
            place = rng.choice(places)
            other = entry[rng.choice(places)].data if rng.random() < 0.3 else hostile_values.text(rng)
            entry[place - 1 : place + 1] = _text(other)
        entries[index] = tuple(entry)


def _drop_or_repeat_entry(entries: list[Entry], tensors: list[Entry], rng: Random) -> None:
    group = rng.choice((entries, entries, tensors))
    if group:
        index = rng.randrange(len(group))
        group[index : index + 1] = rng.choice(([], [], [group[index]] * 2))


def _change_tensor(entries: list[Entry], tensors: list[Entry], rng: Random) -> None:
    """Another dimension, type or offset of one tensor."""
    if tensors:
        index = rng.randrange(len(tensors))
        tensors[index] = tuple(mutate_parts(tensors[index], rng))


def _add_key(entries: list[Entry], tensors: list[Entry], rng: Random) -> None:
    """A key that steers the reader: features, alignment, splits."""
    keys = (
        b"general.alignment", b"split.count", b"split.no", b"split.tensors.count", b"llama.expert_count",
        b"llama.rope.scaling.type", b"llama.attention.key_length", b"llama.vocab_size", b"llama.rope.scaling.factor",
        b"llama.attention.sliding_window", b"tokenizer.ggml.add_bos_token", b"tokenizer.ggml.eot_token_id",
        b"tokenizer.ggml.scores", b"general.file_type", b"qwen2.rope.scaling.factor",
    )  # fmt: skip
    entries.append(_entry(rng.choice(keys), _random_value(rng, 0)))


_MODEL_MUTATIONS: tuple[Mutation, ...] = (
    _change_value,
    _change_number,
    _change_number,
    _change_text,
    _change_text,
    _drop_or_repeat_entry,
    _change_tensor,
    _change_tensor,
    _add_key,
)
