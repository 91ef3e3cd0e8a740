"""An artifact is read back as it was written, replaced in one step, and refused when a byte is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subsecond.core.errors import FormatError
from subsecond.formats.artifact import FOLDER_NAME, MANIFEST_NAME, Artifact, ArtifactWriter, is_artifact
from subsecond.formats.artifact_manifest import ALIGNMENT, PACKED_NAME, SourceFile

SOURCE = SourceFile("model.gguf", "0" * 64, 1234, 5)
FIRST = np.arange(100, dtype=np.uint8)
SECOND = np.arange(24, dtype=np.uint8).reshape(2, 12)


def writer(folder: Path, **packing: object) -> ArtifactWriter:
    return ArtifactWriter(
        folder,
        model={"family": "llama"},
        source=SOURCE,
        shapes={"a": (10, 10), "b": (24,)},
        packing=packing or {"layout": 1},
        chat_template="{{ messages }}",
    )


def write(folder: Path, **packing: object) -> Path:
    with writer(folder, **packing) as artifact:
        artifact.add_tensor("a", FIRST, packed_format="Q8_0", n=10, k=10)
        artifact.add_tensor("b", SECOND, packed_format="vector", n=1, k=6)
        artifact.new_file("tokenizer.json").write_text("{}")
    return folder / FOLDER_NAME


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    place = folder / FOLDER_NAME / MANIFEST_NAME
    content = json.loads(place.read_text())
    edit(content)
    place.write_text(json.dumps(content))


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path)
    assert is_artifact(tmp_path)
    artifact = Artifact.open(tmp_path)
    artifact.verify()
    assert artifact.manifest.source == SOURCE
    assert artifact.manifest.shapes == {"a": (10, 10), "b": (24,)}
    assert artifact.manifest.packing == {"layout": 1}
    assert artifact.manifest.chat_template == "{{ messages }}"
    assert np.array_equal(artifact.tensor("a"), FIRST)
    assert np.array_equal(artifact.tensor("b"), SECOND.reshape(-1))
    assert not artifact.tensor("a").flags.writeable
    assert [t.offset % ALIGNMENT for t in artifact.manifest.tensors.values()] == [0, 0]
    assert artifact.file_path("tokenizer.json").read_text() == "{}"


def test_the_number_of_experts_is_kept_and_told_only_where_there_are_several(tmp_path: Path) -> None:
    with writer(tmp_path) as artifact:
        artifact.add_tensor("a", FIRST, packed_format="Q8_0", n=5, k=10, count=2)
        artifact.add_tensor("b", SECOND, packed_format="vector", n=1, k=6)
    assert [tensor.count for tensor in Artifact.open(tmp_path).manifest.tensors.values()] == [2, 1]
    stored = json.loads((tmp_path / FOLDER_NAME / MANIFEST_NAME).read_text())["tensors"]
    assert stored["a"]["count"] == 2
    assert "count" not in stored["b"]


def test_packed_bytes_can_be_read_into_memory(tmp_path: Path) -> None:
    folder = write(tmp_path)
    artifact = Artifact.open(tmp_path)
    memory = np.zeros(artifact.packed.size, np.uint8)
    artifact.read_packed_into(memory)
    assert np.array_equal(memory, artifact.packed)
    (folder / PACKED_NAME).write_bytes(b"short")
    with pytest.raises(FormatError, match="5 bytes"):
        artifact.read_packed_into(memory)


def test_a_second_artifact_replaces_the_first(tmp_path: Path) -> None:
    write(tmp_path)
    before = Artifact.open(tmp_path)
    mapped = before.packed
    write(tmp_path, layout=2)
    assert Artifact.open(tmp_path).manifest.packing == {"layout": 2}
    assert mapped[3] == 3  # a reader of the first keeps it
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER_NAME]


def test_another_time_of_the_source_is_noted(tmp_path: Path) -> None:
    folder = write(tmp_path)
    first, second = Artifact.open(tmp_path), Artifact.open(tmp_path)
    first.replace_source_time(77)
    assert first.manifest == Artifact.open(tmp_path).manifest
    assert first.manifest.source.modified_ns == 77
    second.replace_source_time(78)  # the manifest is no longer the one it was opened with
    assert Artifact.open(tmp_path).manifest.source.modified_ns == 77
    assert {path.name for path in folder.iterdir()} == {MANIFEST_NAME, PACKED_NAME, "tokenizer.json"}


@pytest.mark.parametrize("name", [PACKED_NAME, "tokenizer.json"])
def test_sizes_are_compared_without_reading(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    Artifact.open(tmp_path).check_sizes()
    (folder / name).write_bytes(b"x")
    with pytest.raises(FormatError, match=f"{name} has 1 bytes"):
        Artifact.open(tmp_path).check_sizes()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(KeyboardInterrupt), writer(tmp_path, layout=2) as artifact:
        artifact.add_tensor("a", FIRST, packed_format="Q8_0", n=10, k=10)
        raise KeyboardInterrupt
    assert Artifact.open(tmp_path).manifest.packing == {"layout": 1}
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER_NAME]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(version=1), "version 1; .*subsecond pull MODEL"),
        (lambda m: m.pop("packing"), "fields are"),
        (lambda m: m.update(surprise=1), "fields are"),
        (lambda m: m.update(chat_template=7), "chat_template"),
        (lambda m: m.update(tensors=[]), "must be an object"),
        (lambda m: m["tensors"]["a"].update(offset=-64), "allowed are 0"),
        (lambda m: m["tensors"]["a"].update(offset=1), "no multiple of 64"),
        (lambda m: m["tensors"]["a"].update(offset=True), "must be an integer"),
        (lambda m: m["tensors"]["a"].update(num_bytes=129), "overlap"),
        (lambda m: m["tensors"]["b"].update(num_bytes=25), "ends at byte 153"),
        (lambda m: m["tensors"]["b"].update(num_bytes=2**62), "allowed are 1"),
        (lambda m: m["tensors"]["b"].update(n=0), "allowed are 1"),
        (lambda m: m["tensors"]["b"].update(count=0), "allowed are 1"),
        (lambda m: m["tensors"]["b"].update(count=2**17), "allowed are 1"),
        (lambda m: m["tensors"]["b"].update(count="2"), "must be an integer"),
        (lambda m: m["tensors"]["b"].pop("k"), "missing"),
        (lambda m: m["shapes"].update(a=[10, -1]), "positive integers"),
        (lambda m: m["shapes"].update(a=[]), "positive integers"),
        (lambda m: m["source"].update(sha256="no"), "hexadecimal"),
        (lambda m: m["files"].pop(PACKED_NAME), "does not list"),
        (lambda m: m["files"].update({"../x": m["files"][PACKED_NAME]}), "plain file name"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    write(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(FormatError, match=message):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b"\xff\xfe", b'{"version": NaN}', b'{"version": 1, "version": 1}', b"[" * 100_000],
    ids=["empty", "list", "cut", "not text", "not a number", "twice", "deep"],
)
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    write(tmp_path)
    (tmp_path / FOLDER_NAME / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(FormatError):
        Artifact.open(tmp_path)


def test_a_packed_file_of_another_size_is_refused_before_it_is_mapped(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with (folder / PACKED_NAME).open("ab") as file:
        file.write(b"x")
    with pytest.raises(FormatError, match="the manifest says"):
        Artifact.open(tmp_path).tensor("a")


@pytest.mark.parametrize("name", [PACKED_NAME, "tokenizer.json"])
def test_verify_finds_a_changed_byte_and_a_missing_file(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(FormatError, match="damaged"):
        Artifact.open(tmp_path).verify()
    (folder / name).unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        Artifact.open(tmp_path).verify()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    artifact = Artifact.open(tmp_path)
    with pytest.raises(FormatError, match="no packed tensor 'c'"):
        artifact.tensor("c")
    with pytest.raises(FormatError, match="no file"):
        artifact.file_path("manifest.json")
    with pytest.raises(FormatError, match="holds no artifact"):
        Artifact.open(tmp_path / "elsewhere")
