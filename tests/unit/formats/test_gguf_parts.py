"""Models split into several GGUF files: any part opens all of them, and parts that do not fit together are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from subsecond.core.errors import FormatError
from subsecond.formats.gguf import GgufFile
from subsecond.formats.gguf_parts import named_parts
from subsecond.formats.gguf_types import TensorType
from tests import gguf_writer as writer
from tests.gguf_writer import GgufImage, TensorEntry

COUNT = 3


def part_image(
    number: int, *, count: int | None = COUNT, num_tensors: int | None = 5, architecture: str | None = None
) -> GgufImage:
    """Part `number` from 0: the first has the metadata, the others two tensors each, as gguf-split writes them."""
    metadata: list[tuple[str | bytes, bytes]] = []
    if number == 0 or architecture is not None:
        name = writer.value(writer.STRING, writer.text(architecture or "llama"))
        metadata.append(("general.architecture", name))
    if count is not None:
        metadata.append(("split.no", writer.value(writer.U16, writer.number(writer.U16, number))))
        metadata.append(("split.count", writer.value(writer.U16, writer.number(writer.U16, count))))
    if num_tensors is not None:
        metadata.append(("split.tensors.count", writer.value(writer.I32, writer.number(writer.I32, num_tensors))))
    tensors = [
        TensorEntry(f"tensor{number}.{index}", (4,), TensorType.F32, np.full(4, 10 * number + index, "<f4").tobytes())
        for index in range(1 if number == 0 else 2)
    ]
    return GgufImage(metadata=metadata, tensors=tensors)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"model-q4-{number + 1:05}-of-{COUNT:05}.gguf" for number in range(COUNT)]
    for number, path in enumerate(paths):
        path.write_bytes(part_image(number).to_bytes())
    return paths


@pytest.mark.parametrize("number", range(COUNT))
def test_any_part_opens_all(parts: list[Path], number: int) -> None:
    file = GgufFile.open(parts[number])
    assert file.paths == tuple(parts) == named_parts(parts[number])
    assert file.metadata["general.architecture"] == "llama"
    assert list(file.tensors) == ["tensor0.0", "tensor1.0", "tensor1.1", "tensor2.0", "tensor2.1"]
    assert [file.tensors[name].part for name in file.tensors] == [0, 1, 1, 2, 2]
    for name in file.tensors:
        wanted = 10 * int(name[6]) + int(name[8])
        assert file.raw(name).view("<f4").tolist() == [wanted] * 4


@pytest.mark.parametrize("name", ["model.gguf", "model-00001-of-00001.gguf", "model-00003-of-00002.gguf"])
def test_one_file_is_its_own_part(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(part_image(0, count=1, num_tensors=1).to_bytes())
    assert GgufFile.open(path).paths == (path,) == named_parts(path)


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(FormatError, match=r"one of 3 parts.*00002-of-00003.gguf is missing"):
        GgufFile.open(parts[2])


@pytest.mark.parametrize("name", ["model.gguf", "model-00001-of-00004.gguf", "model-1-of-3.gguf"])
def test_a_renamed_part_is_refused(parts: list[Path], name: str) -> None:
    renamed = parts[0].rename(parts[0].with_name(name))
    with pytest.raises(FormatError, match=rf"{name}: .*its name must end in -NUMBER-of-00003.gguf"):
        GgufFile.open(renamed)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (part_image(2), r"00002-of-00003.gguf: by its name this is part 2, but its metadata says part 3 \(split.no\)"),
        (part_image(1, count=4), "00002-of-00003.gguf: this part says that its model has 4 parts"),
        (part_image(1, count=None), "00002-of-00003.gguf: this part says that its model has 1 parts"),
        (part_image(1, architecture="qwen2"), "00002-of-00003.gguf: general.architecture is 'qwen2', but 'llama'"),
        (part_image(1, num_tensors=6), "00002-of-00003.gguf: split.tensors.count is 6, but 5"),
        (GgufImage(metadata=part_image(1).metadata, tensors=part_image(0).tensors), "tensor0.0' is in .*00001-of"),
        (GgufImage(metadata=part_image(1).metadata), "have 3 tensors together, 5 are declared"),
        (GgufImage(magic=b"XXXX"), "00002-of-00003.gguf: not a GGUF file"),
        (GgufImage(metadata=[("split.count", writer.strings(["3"]))]), "00002-of-00003.gguf: .*'split.count'"),
    ],
)
def test_parts_that_do_not_fit_are_named(parts: list[Path], image: GgufImage, message: str) -> None:
    parts[1].write_bytes(image.to_bytes())
    with pytest.raises(FormatError, match=message):
        GgufFile.open(parts[0])


@pytest.mark.parametrize("count", [513, 65535])
def test_the_number_of_parts_is_bounded(tmp_path: Path, count: int) -> None:
    path = tmp_path / f"model-00001-of-{count:05}.gguf"
    path.write_bytes(part_image(0, count=count).to_bytes())
    with pytest.raises(FormatError, match=r"split.count.*allowed are 0 to 512"):
        GgufFile.open(path)
