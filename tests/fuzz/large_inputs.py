"""Files that use up a limit of their format: as large, as many or as deep as a reader takes, by reader and name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping

from tests import gguf_writer as gguf
from tests.fuzz import file_bundle, hugging_face_inputs, template_inputs, tiny_model


def _gguf(metadata: list[tuple[str | bytes, bytes]]) -> bytes:
    return gguf.GgufImage(metadata).to_bytes()


def _array(element_type: int, count: int, payload: bytes) -> bytes:
    return gguf.value(gguf.ARRAY, struct.pack("<IQ", element_type, count) + payload * count)


def _hf(index: int, content: bytes) -> bytes:
    contents = file_bundle.unpack(hugging_face_inputs.valid_folder("plain"), len(hugging_face_inputs.FILES))
    contents[index] = content
    return file_bundle.pack(contents)


def _header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(64)


def _many_tensors(count: int) -> bytes:
    entries = {f"t{index}": {"dtype": "U8", "shape": [1], "data_offsets": [index, index + 1]} for index in range(count)}
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(count)


def _big_vocabulary(count: int) -> bytes:
    tokenizer = dict(tiny_model.TOKENIZER)
    tokens = tokenizer["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tokenizer["tokenizer.ggml.tokens"] = [*tokens, *(f"t{index}" for index in range(count))]
    tokenizer["tokenizer.ggml.token_type"] = [1] * len(tokens) + [3] * count
    return json.dumps(tokenizer).encode()


MIB = 2**20
INPUTS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "gguf_many_short_texts": ("gguf", lambda: _gguf([("a", _array(gguf.STRING, 2 * MIB, gguf.text("")))])),
    "gguf_many_texts": ("gguf", lambda: _gguf([("a", _array(gguf.STRING, 3 * MIB // 2, gguf.text("€x")))])),
    "gguf_many_numbers": ("gguf", lambda: _gguf([("a", _array(gguf.U64, 2 * MIB, b"\xff" * 8))])),
    "gguf_many_floats": ("gguf", lambda: _gguf([("a", _array(gguf.F32, 2 * MIB, b"\x01" * 4))])),
    "gguf_many_arrays": ("gguf", lambda: _gguf([("a", _array(gguf.ARRAY, MIB, gguf.array_body(gguf.U8, [])))])),
    "gguf_four_arrays": ("gguf", lambda: _gguf([(str(i), _array(gguf.F32, MIB, b"\x01" * 4)) for i in range(4)])),
    "gguf_long_text": ("gguf", lambda: _gguf([("a", gguf.value(gguf.STRING, gguf.text(b"\xff" * (16 * MIB))))])),
    "gguf_many_keys": ("gguf", lambda: _gguf([(str(i), gguf.value(gguf.U8, b"\0")) for i in range(16384)])),
    "json_nested_arrays": ("hf_folder", lambda: _hf(0, b"[" + b"[],[[]],{}," * (3 * MIB) + b"0]")),
    "json_deep": ("hf_folder", lambda: _hf(0, b"[" * (16 * MIB))),
    "json_long_number": ("hf_folder", lambda: _hf(0, b'{"a":' + b"9" * (16 * MIB) + b"}")),
    "json_many_numbers": ("hf_folder", lambda: _hf(0, b'{"a":[' + b"1.5," * (4 * MIB) + b"0]}")),
    "index_many_names": ("hf_folder", lambda: _hf(1, b'{"weight_map":{' + _members(400_000) + b"}}")),
    "tokenizer_many_arrays": ("hf_folder", lambda: _hf(5, b'{"model":[' + b"[]," * (5 * MIB) + b"0]}")),
    "tokenizer_file_arrays": ("tokenizer_file", lambda: b'{"model":[' + b"[]," * (5 * MIB) + b"0]}"),
    "manifest_arrays": ("artifact", lambda: file_bundle.pack([b'{"model":[' + b"[]," * (5 * MIB) + b"0]}", b"", b""])),
    "safetensors_arrays": ("safetensors", lambda: _header(b'{"a":[' + b"[]," * (5 * MIB) + b"0]}")),
    "safetensors_metadata": ("safetensors", lambda: _header(b'{"__metadata__":{' + _members(300_000) + b"}}")),
    "safetensors_many_tensors": ("safetensors", lambda: _many_tensors(65_536)),
    "vocabulary_of_control_tokens": ("tokenizer_metadata", lambda: _big_vocabulary(30_000)),
    "template_long": ("chat_template", lambda: b"{{ messages }}" * 6_900),
    "template_long_list": ("chat_template", lambda: b"{{ [" + b"a," * 48_000 + b"a] }}"),
    "template_long_comparison": ("chat_template", lambda: b"{{ a" + b"<a" * 3_900 + b" }}"),
    "template_many_texts": ("chat_template", lambda: b"{{ x" + b"~''" * 19_000 + b" }}"),
    "template_long_sum": ("chat_template", lambda: b"{{ " + b"a+" * 48_000 + b"a }}"),
    "template_of_blanks": ("chat_template", lambda: b" " * 98_000 + b"{% x"),
    "template_of_braces": ("chat_template", lambda: b"{{" * 49_000),
    "template_of_backslashes": ("chat_template", lambda: b"{{ '" + b"\\" * 98_001 + b"' }}"),
    **{
        f"template_slow_{index}": ("chat_template", lambda source=source: source.encode())  # type: ignore[misc]
        for index, source in enumerate(template_inputs.SLOW_ATTACKS)
    },
}


def _members(count: int) -> bytes:
    return b",".join(b'"name%d":"model-00001-of-00002.safetensors"' % index for index in range(count))
