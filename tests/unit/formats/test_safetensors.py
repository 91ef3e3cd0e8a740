"""safetensors files open as their own library writes them, and damage or hostile headers are refused in words."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from subsecond.core.errors import FormatError, InputError, SubsecondError, UnsupportedError
from subsecond.formats import json_cursor
from subsecond.formats.safetensors import Safetensors


def write(path: Path, header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        'a "quoted" \\ ü': np.arange(4, dtype=np.float16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "codes": np.arange(-4, 4, dtype=np.int8),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt", "more": '{"nested": [1, "}"]}'})
    opened = Safetensors.open(tmp_path / "x.safetensors")
    assert set(opened.tensors) == set(arrays)
    for name, array in arrays.items():
        assert opened.tensors[name].shape == array.shape
        assert opened.raw(name).tobytes() == array.tobytes()
    assert opened.tensors["codes"].dtype == "I8"
    assert not opened.raw("b").flags.writeable


def test_bfloat16(tmp_path: Path) -> None:
    save_tensors({"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    opened = Safetensors.open(tmp_path / "x.safetensors")
    assert opened.tensors["w"].dtype == "BF16"
    assert opened.raw("w").tobytes() == b"\xc0\x3f\x00\xc0"


def write_shards(folder: Path, weight_map: Mapping[str, str] | None = None) -> Path:
    save_file({"a": np.ones(2, np.float32)}, folder / "model-1.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, folder / "model-2.safetensors")
    index = {
        "metadata": {"total_size": 20, "more": [{"deep": [1.5e3, "]"]}, None]},
        "weight_map": weight_map or {"a": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def test_shards_open_as_one(tmp_path: Path) -> None:
    opened = Safetensors.open_folder(write_shards(tmp_path))
    assert [path.name for path in opened.paths] == ["model-1.safetensors", "model-2.safetensors"]
    assert opened.raw("b").size == 12 and opened.raw("a").view(np.float32).tolist() == [1, 1]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FormatError, match=r"names model-2\.safetensors, which is missing"):
        Safetensors.open_folder(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "model.bin", ".safetensors"])
def test_an_index_names_files_beside_it_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="no name of a file beside it"):
        Safetensors.open_folder(write_shards(tmp_path, {"a": name}))


def test_an_index_that_names_another_place(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "model-2.safetensors", "b": "model-2.safetensors"})
    with pytest.raises(FormatError, match=r"'a' is in model-2\.safetensors, but it is not"):
        Safetensors.open_folder(tmp_path)


def test_the_same_tensor_in_two_files(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"b": np.ones(2, np.float32), "a": np.ones(2, np.float32)}, tmp_path / "model-1.safetensors")
    with pytest.raises(FormatError, match="'b' is there in another file too"):
        Safetensors.open_folder(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=r"pickled.*never read.*save_pretrained"):
        Safetensors.open_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UnsupportedError, match="has no weights"):
        Safetensors.open_folder(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry([2], 0, 4)}, r"shape \[2\] and type F32 takes 8 bytes"),
        ({"a": entry([2], 8, 0)}, "takes 8 bytes, not 8 to 0"),
        ({"a": entry([2], 4, 12), "b": entry([2], 0, 8)}, "'b' and 'a' overlap"),
        ({"a": entry([9], 0, 36)}, "was it fetched completely"),
        ({"a": entry([2**40, 2**40], 0, 2**80)}, "two numbers of bytes"),
        ({"a": entry([-2], 0, 8)}, "it must be at most 8 sizes"),
        ({"a": entry([1] * 9, 0, 4)}, "it must be at most 8 sizes"),
        ({"a": {**entry([2], 0, 8), "shape": [True, 2]}}, "it must be at most 8 sizes"),
        ({"a": {**entry([2], 0, 8), "more": 1}}, "they must be"),
        ({"a": [1]}, "an object of at most 2048 bytes"),
        ({"x" * 600: entry([2], 0, 8)}, "a string of at most 512"),
        (b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}', "',' is needed"),
        (b'{"a": {}, "a": {}}', "they must be"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "a key occurs twice"),
        (b'{"__metadata__":' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 deep"),
        (b'{"__metadata__":}', "where a value is needed"),
        (b'{"__metadata__":"open}', "no end"),
        (b"{} x", "more after its end"),
        (b"", "'{' is needed"),
        (b"\xff{}", "'{' is needed"),
        (b'{"\xff": {}}', "utf-8"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: Mapping[str, Any] | bytes, message: str) -> None:
    path = write(tmp_path / "x.safetensors", header, b"\0" * 16)
    with pytest.raises(FormatError, match=message) as caught:
        Safetensors.open(path)
    assert "x.safetensors" in str(caught.value)


def test_the_same_name_twice_in_a_file(tmp_path: Path) -> None:
    one = json.dumps(entry([2], 0, 8)).encode()
    path = write(tmp_path / "x.safetensors", b'{"a":' + one + b',"a":' + one + b"}", b"\0" * 8)
    with pytest.raises(FormatError, match="'a' is there twice"):
        Safetensors.open(path)


def test_unknown_types_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry([2], 0, 8, "F4")}, b"\0" * 8)
    with pytest.raises(UnsupportedError, match="'F4'; known are BOOL, U8"):
        Safetensors.open(path)


@pytest.mark.parametrize("length", [3, 2**63, 17 * 2**20])
def test_headers_longer_than_the_file_or_the_limit(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", b"{}", length=length)
    with path.open("r+b") as file:
        file.truncate(18 * 2**20 if length == 17 * 2**20 else 10)
    with pytest.raises(FormatError, match="says that its header has"):
        Safetensors.open(path)


def test_no_safetensors_at_all(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(FormatError, match="it has 3 bytes"):
        Safetensors.open(tmp_path / "x")
    with pytest.raises(InputError, match="no such file"):
        Safetensors.open(tmp_path / "y")


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_cursor, "BUDGET_BYTES", 1000)
    path = write(tmp_path / "x.safetensors", {str(n): entry([1], 4 * n, 4 * n + 4) for n in range(3)}, b"\0" * 12)
    with pytest.raises(FormatError, match="above 1000 bytes of memory"):
        Safetensors.open(path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":{},' * 2**17,
        b'{"__metadata__":{' + b'"\\\\":"\\"",' * 2**17,
        b'{"__metadata__":[' + b"[]," * 2**18,
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(2**15)) + b"}",
    ],
    ids=["objects", "escapes", "brackets", "tensors"],
)
def test_hostile_headers_take_memory_for_few_tensors_only(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a sixteenth of the limits, because memory is slow to trace
    monkeypatch.setattr(json_cursor, "BUDGET_BYTES", json_cursor.BUDGET_BYTES // 16)
    monkeypatch.setattr(json_cursor, "MAX_SKIPPED_BYTES", json_cursor.MAX_SKIPPED_BYTES // 16)
    path = write(tmp_path / "x.safetensors", content[: 2**20])
    tracemalloc.start()
    with pytest.raises(FormatError):
        Safetensors.open(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20 // 16


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_files_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("mutated") / "x.safetensors"
    header = {"__metadata__": {"format": "pt"}, "a": entry([2, 2], 0, 16), "b": entry([3], 16, 22, "F16")}
    content = bytearray(write(path, header, bytes(22)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        content = content or bytearray(b"x")
    path.write_bytes(content)
    try:
        opened = Safetensors.open(path)
    except SubsecondError:
        return
    for name, tensor in opened.tensors.items():
        assert opened.raw(name).size == tensor.num_bytes
