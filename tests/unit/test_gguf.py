"""The GGUF reader: well-formed files are read exactly, damaged ones are refused and never crash, hang or allocate."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats import gguf, gguf_metadata
from subsecond.formats.gguf import GgufFile
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType, can_dequantize, dequantize
from tests import gguf_writer as writer
from tests.gguf_writer import GgufImage, TensorEntry

WEIGHTS = np.arange(6, dtype="<f4")
Open = Callable[[bytes], GgufFile]


@pytest.fixture
def open_bytes(tmp_path: Path) -> Open:
    def open_image(image: bytes) -> GgufFile:
        path = tmp_path / "model.gguf"
        path.unlink(missing_ok=True)  # a file that is mapped is not cut
        path.write_bytes(image)
        return GgufFile.open(path)

    return open_image


def example() -> GgufImage:
    return GgufImage(
        metadata=[
            ("general.architecture", writer.value(writer.STRING, writer.text("llama"))),
            ("count", writer.value(writer.U32, writer.number(writer.U32, 7))),
            ("signed", writer.value(writer.I64, writer.number(writer.I64, -5))),
            ("flag", writer.value(writer.BOOL, b"\x01")),
            ("ratio", writer.value(writer.F64, writer.number(writer.F64, 0.1))),
            ("kinds", writer.array(writer.I32, [writer.number(writer.I32, each) for each in (1, -2, 3)])),
            ("tokens", writer.strings(["a", "", "é", b"\xff", b"\xfe"])),
            ("nested", writer.array(writer.ARRAY, [writer.array_body(writer.U8, [b"\x01", b"\x02"])] * 2)),
        ],
        tensors=[
            TensorEntry("matrix", (3, 2), TensorType.F32, WEIGHTS.tobytes()),
            TensorEntry("blocks", (32,), TensorType.Q8_0, bytes(range(34))),
        ],
    )


@pytest.mark.parametrize("version", gguf.SUPPORTED_VERSIONS)
def test_reads_metadata_and_tensors(open_bytes: Open, version: int) -> None:
    image = example()
    image.version = version
    file = open_bytes(image.to_bytes())
    assert dict(file.metadata) == {
        "general.architecture": "llama",
        "count": 7,
        "signed": -5,
        "flag": True,
        "ratio": 0.1,
        "kinds": [1, -2, 3],
        "tokens": ["a", "", "é", "\udcff", "\udcfe"],
        "nested": [[1, 2], [1, 2]],
    }
    assert file.metadata["flag"] is True
    matrix = file.tensors["matrix"]
    assert (matrix.shape, matrix.type, matrix.num_bytes) == ((2, 3), TensorType.F32, 24)
    assert matrix.offset % gguf.DEFAULT_ALIGNMENT == 0
    raw = file.raw("matrix")
    assert (raw.dtype.name, raw.ndim, raw.flags.writeable, raw.flags.owndata) == ("uint8", 1, False, False)
    np.testing.assert_array_equal(dequantize(matrix.type, raw, matrix.shape), WEIGHTS.reshape(2, 3))
    assert file.raw("blocks").tobytes() == bytes(range(34))


def test_respects_the_declared_alignment(open_bytes: Open) -> None:
    image = example()
    image.alignment = 256
    image.metadata.append(("general.alignment", writer.value(writer.U32, writer.number(writer.U32, 256))))
    file = open_bytes(image.to_bytes())
    assert all(tensor.offset % 256 == 0 for tensor in file.tensors.values())
    assert file.raw("matrix").tobytes() == WEIGHTS.tobytes()


def test_raw_outlives_the_file_object(open_bytes: Open) -> None:
    raw = open_bytes(example().to_bytes()).raw("matrix")
    assert raw.tobytes() == WEIGHTS.tobytes()


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open"):
        GgufFile.open(tmp_path / "none.gguf")


def with_metadata(payload: bytes, key: str | bytes = "key") -> GgufImage:
    return GgufImage(metadata=[(key, payload)])


def with_tensor(**changes: object) -> GgufImage:
    fields: dict[str, object] = {"name": "t", "dims": (4,), "type_id": 0, "data": bytes(16), **changes}
    return GgufImage(tensors=[TensorEntry(**fields)])  # type: ignore[arg-type]


def alignment(value_type: int, value: int) -> GgufImage:
    return with_metadata(writer.value(value_type, writer.number(value_type, value)), "general.alignment")


def nested(depth: int) -> bytes:
    body = writer.array_body(writer.U8, [b"\x00"])
    for _ in range(depth - 1):
        body = writer.array_body(writer.ARRAY, [body])
    return writer.value(writer.ARRAY, body)


LONG = struct.pack("<Q", 2**63)
TENSOR = TensorEntry("t", (8,), 0, bytes(32))
CORRUPTIONS: dict[str, bytes] = {
    "empty": b"",
    "only the magic": b"GGUF",
    "magic": GgufImage(magic=b"GGML").to_bytes(),
    "tensor count": GgufImage(num_tensors=2**63).to_bytes(),
    "tensor count beyond the file": GgufImage(num_tensors=100).to_bytes(),
    "key count": GgufImage(num_keys=2**64 - 1).to_bytes(),
    "key count beyond the file": GgufImage(num_keys=5).to_bytes(),
    "empty key": with_metadata(writer.value(writer.U8, b"\x00"), "").to_bytes(),
    "long key": with_metadata(writer.value(writer.U8, b"\x00"), "k" * 2000).to_bytes(),
    "key not UTF-8": with_metadata(writer.value(writer.U8, b"\x00"), b"\xff\xfe").to_bytes(),
    "duplicate key": GgufImage(metadata=[("k", writer.value(writer.U8, b"\x00"))] * 2).to_bytes(),
    "value type": with_metadata(writer.value(13, b"\x00")).to_bytes(),
    "truth value": with_metadata(writer.value(writer.BOOL, b"\x02")).to_bytes(),
    "truth value in array": with_metadata(writer.array(writer.BOOL, [b"\x01", b"\x07"])).to_bytes(),
    "string length": with_metadata(writer.value(writer.STRING, LONG)).to_bytes(),
    "string beyond the file": with_metadata(writer.value(writer.STRING, struct.pack("<Q", 500))).to_bytes(),
    "string in array": with_metadata(writer.array(writer.STRING, [writer.text("a"), LONG])).to_bytes(),
    "array count": with_metadata(writer.value(writer.ARRAY, struct.pack("<I", writer.U8) + LONG)).to_bytes(),
    "array beyond the file": with_metadata(
        writer.value(writer.ARRAY, struct.pack("<IQ", writer.F64, 10_000))
    ).to_bytes(),
    "strings beyond the file": with_metadata(
        writer.value(writer.ARRAY, struct.pack("<IQ", writer.STRING, 1 << 20))
    ).to_bytes(),
    "array element type": with_metadata(writer.array(99, [b"\x00"])).to_bytes(),
    "nesting": with_metadata(nested(gguf_metadata.MAX_ARRAY_NESTING + 1)).to_bytes(),
    "many inner arrays": with_metadata(
        writer.array(writer.ARRAY, [writer.value(writer.ARRAY, struct.pack("<IQ", 9, 1 << 21))])
    ).to_bytes(),
    "alignment zero": alignment(writer.U32, 0).to_bytes(),
    "alignment no power of two": alignment(writer.U32, 48).to_bytes(),
    "alignment huge": alignment(writer.U32, 1 << 30).to_bytes(),
    "alignment type": alignment(writer.U64, 32).to_bytes(),
    "no tensor name": with_tensor(name="").to_bytes(),
    "long tensor name": with_tensor(name="n" * 300).to_bytes(),
    "tensor name not UTF-8": with_tensor(name=b"\xc3").to_bytes(),
    "duplicate tensor": GgufImage(tensors=[TENSOR, TENSOR]).to_bytes(),
    "no dimensions": with_tensor(dims=()).to_bytes(),
    "too many dimensions": with_tensor(dims=(1, 1, 1, 1, 4)).to_bytes(),
    "zero dimension": with_tensor(dims=(4, 0)).to_bytes(),
    "dimensions that overflow 64 bits": with_tensor(dims=(2**32, 2**32, 4)).to_bytes(),
    "partial block": with_tensor(dims=(33,), type_id=TensorType.Q8_0, data=bytes(68)).to_bytes(),
    "tensor beyond the file": with_tensor(dims=(4000,)).to_bytes(),
    "offset beyond the file": with_tensor(offset=1 << 20).to_bytes(),
    "offset overflow": with_tensor(offset=2**64 - 32).to_bytes(),
    "offset not aligned": with_tensor(offset=4).to_bytes(),
    "overlap": GgufImage(tensors=[TENSOR, TensorEntry("u", (8,), 0, bytes(64), offset=0)]).to_bytes(),
    "cut in the tensor data": GgufImage(tensors=[TENSOR]).to_bytes()[:-8],
}


@pytest.mark.parametrize("image", CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_every_corruption_is_a_format_error(open_bytes: Open, image: bytes) -> None:
    with pytest.raises(FormatError):
        open_bytes(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GgufImage(version=1).to_bytes(), "version 1"),
        (GgufImage(version=4).to_bytes(), "version 4"),
        (GgufImage(version=3 << 24).to_bytes(), "big-endian"),
        (with_tensor(type_id=4).to_bytes(), "type id 4"),
        (with_tensor(type_id=9999).to_bytes(), "type id 9999"),
    ],
)
def test_what_is_not_supported_is_named(open_bytes: Open, image: bytes, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        open_bytes(image)


def test_counts_are_refused_before_anything_is_allocated(open_bytes: Open) -> None:
    payload = writer.value(writer.ARRAY, struct.pack("<IQ", writer.F64, gguf_metadata.MAX_ARRAY_ELEMENTS))
    image = with_metadata(payload).to_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            open_bytes(image)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_opening_a_large_vocabulary_decodes_nothing(open_bytes: Open) -> None:
    tokens = [f"token{index}" for index in range(50_000)]
    image = with_metadata(writer.strings(tokens), "tokens").to_bytes()
    tracemalloc.start()
    try:
        file = open_bytes(image)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 1 << 18
    assert file.metadata["tokens"] == tokens


def vocabulary_image(tokens: list[str], kinds: NDArray[np.int32], merges: list[str]) -> bytes:
    return GgufImage(
        metadata=[
            ("tokens", writer.strings(tokens)),
            ("kinds", writer.value(writer.ARRAY, struct.pack("<IQ", writer.I32, len(kinds)) + kinds.tobytes())),
            ("merges", writer.strings(merges)),
        ]
    ).to_bytes()


@pytest.mark.parametrize(("num_tokens", "num_merges"), [(150_000, 150_000), (256_000, 600_000)])
def test_a_large_vocabulary_is_read_exactly(open_bytes: Open, num_tokens: int, num_merges: int) -> None:
    tokens = [f"\u0120wort{index}" if index % 3 else f"w\u00f6\u4e16{index}" for index in range(num_tokens)]
    kinds = np.arange(num_tokens, dtype="<i4") % 6 + 1
    merges = [f"\u0120a{index} b" for index in range(num_merges)]
    found = open_bytes(vocabulary_image(tokens, kinds, merges)).metadata
    assert found["kinds"] == kinds.tolist()
    for key, wanted in (("tokens", tokens), ("merges", merges)):
        texts = found[key]
        assert isinstance(texts, Sequence)
        assert list(texts) == wanted
        assert (texts[0], texts[-1], texts[num_tokens // 2]) == (wanted[0], wanted[-1], wanted[num_tokens // 2])


def test_the_strings_of_a_vocabulary_stay_in_the_file(open_bytes: Open) -> None:
    tokens, merges = ["\u0120word"] * 50_000, ["\u0120a b"] * 100_000
    image = vocabulary_image(tokens, np.ones(50_000, "<i4"), merges)
    tracemalloc.start()
    try:
        values = dict(open_bytes(image).metadata)
        held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(values) == 3
    assert max(held_bytes, peak_bytes) < 3 << 20  # 150,000 strings as objects would take 9 MB


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        ["", "", "a", ""],
        [b"\xe4\xb8", b"\x96", "\u4e16", b"\xf0\x9f", "\U0001f600", b"\xff\xfe"],
        ["\0", "\0\0", "a\0b"],
        [bytes([byte]) for byte in range(256)],
        ["x" * 300, "y" * 3000, "z"],
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 1 << 15])
def test_string_arrays_are_decoded_alike_in_one_piece_and_in_many(
    open_bytes: Open, texts: list[str | bytes], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_metadata, "_CHUNK_STRINGS", chunk)
    array = open_bytes(with_metadata(writer.strings(texts)).to_bytes()).metadata["key"]
    raw = [text if isinstance(text, bytes) else text.encode() for text in texts]
    wanted = [text.decode("utf-8", "surrogateescape") for text in raw]
    assert isinstance(array, Sequence)
    assert list(array) == wanted == array[:] == [array[index] for index in range(len(texts))]
    assert array == wanted and (array != [*wanted, "more"])
    with pytest.raises(IndexError):
        array[len(texts)]


def test_random_strings_are_decoded_as_one_by_one(open_bytes: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_metadata, "_CHUNK_BYTES", 500)
    chance = random.Random(7)
    pieces = [b"a", b"\xc3\xa9", b"\xe4\xb8\x96", b"\xf0\x9f\x98\x80", b"\xe4\xb8", b"\xff", b"\xed\xa0\x80", b"\0"]
    texts = [b"".join(chance.choices(pieces, k=chance.randrange(9))) for _ in range(2000)]
    array = open_bytes(with_metadata(writer.strings(texts)).to_bytes()).metadata["key"]
    assert array == [text.decode("utf-8", "surrogateescape") for text in texts]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (writer.value(writer.ARRAY, struct.pack("<IQ", writer.F64, 20_000) + bytes(160_000)), "bytes of memory"),
        (writer.value(writer.ARRAY, struct.pack("<IQ", writer.U64, 16_000) + b"\xfe" * 128_000), "bytes of memory"),
        (writer.value(writer.STRING, writer.text("\U0001f600" + "x" * 200_000)), "bytes of memory"),
        (writer.array(writer.ARRAY, [writer.array_body(writer.U8, [])] * 400), "bytes of memory"),
        (writer.strings([b"\xff" * 5000] * 150), "bytes of memory"),
        (writer.strings(["a"] * 400), "1000 strings in arrays"),
    ],
)
def test_what_decoding_would_take_is_bounded_for_the_whole_header(
    open_bytes: Open, payload: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_metadata, "HEADER_BUDGET_BYTES", 1 << 20)
    monkeypatch.setattr(gguf_metadata, "MAX_WALKED_ELEMENTS", 1000)
    image = GgufImage(metadata=[(f"key{index}", payload) for index in range(3)])
    with pytest.raises(FormatError, match=message):
        open_bytes(image.to_bytes())
    file = open_bytes(GgufImage(metadata=image.metadata[:1]).to_bytes())
    tracemalloc.start()
    try:
        assert len(dict(file.metadata)) == 1
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 1 << 20


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="no regular file"):
        GgufFile.open(tmp_path / "model.gguf")


def mutate(image: bytes, chance: random.Random) -> bytes:
    """Damage a file in one to four places, most often in its header, or cut it."""
    data = bytearray(image)
    for _ in range(chance.randint(1, 4)):
        kind, at = chance.randrange(6), chance.randrange(len(data))
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at : at + 8] = struct.pack("<Q", chance.choice([0, 1, 255, 2**31, 2**32, 2**63, 2**64 - 1, len(data)]))
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", chance.randrange(16))
        elif kind == 4:
            del data[at : at + chance.randint(1, 16)]
        else:
            del data[chance.randrange(len(data)) :]
        if not data:
            break
    return bytes(data)


def test_damaged_files_never_raise_anything_else(open_bytes: Open) -> None:
    image = example().to_bytes()
    chance = random.Random(20240607)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(3000):
        damaged = mutate(image, chance)
        try:
            file = open_bytes(damaged)
            for value in file.metadata.values():
                assert not isinstance(value, Sequence) or len(list(value)) == len(value)
            for name, tensor in file.tensors.items():
                raw = file.raw(name)
                if can_dequantize(tensor.type):
                    assert dequantize(tensor.type, raw, tensor.shape).shape == tensor.shape
            outcomes["read"] += 1
        except (FormatError, UnsupportedError):
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 300, outcomes


def test_every_type_has_a_block_layout() -> None:
    assert set(BLOCK_LAYOUTS) == set(TensorType)


def test_dequantize_refuses_unknown_types_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"IQ2_XXS.*supported types are F32, .*IQ4_XS"):
        dequantize(TensorType.IQ2_XXS, np.zeros(66, np.uint8), (256,))


@pytest.mark.parametrize(("num_bytes", "shape"), [(33, (32,)), (34, (31,)), (34, (64,)), (35, (32,))])
def test_dequantize_refuses_a_wrong_length(num_bytes: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match="do not hold"):
        dequantize(TensorType.Q8_0, np.zeros(num_bytes, np.uint8), shape)
