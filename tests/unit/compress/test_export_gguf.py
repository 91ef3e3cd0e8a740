"""An exported GGUF file: read by the gguf package and by our own reader, it is the model that was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from subsecond.compress.export_gguf import export_gguf
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.hf_writer import CheckpointWriter
from tests.unit.reference_logits import logits_of
from tests.unit.tiny_gguf import CHAT_TEMPLATE, SMALL, TOKENIZER, all_of, mixed, tensors_of, write_gguf

TEXT = "hello the world, he"


def ignore(_: int, __: int) -> None:
    """No progress to show."""


def open_folder(folder: Path, type_name: str = "") -> tuple[Checkpoint, Checkpoint]:
    """A GGUF file and the Hugging Face folder made from it."""
    rule = all_of(type_name) if type_name else mixed
    source = open_checkpoint(write_gguf(folder / "small.gguf", SMALL, tensors_of(SMALL, rule)))
    with CheckpointWriter(folder / "folder", source) as sink:
        for name, tensor in tensors_of(SMALL, rule).items():
            sink.put(name, tensor)
    return source, open_checkpoint(folder / "folder")


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "F16", "BF16", "F32", ""])
def test_a_folder_becomes_the_file_it_was_made_from(tmp_path: Path, type_name: str) -> None:
    source, folder = open_folder(tmp_path, type_name)
    result = export_gguf(folder, tmp_path / "again.gguf", ignore)
    found = open_checkpoint(tmp_path / "again.gguf")
    assert found.config == replace(source.config, name="folder")
    for name, shape in source.shapes.items():
        assert found.shapes[name] == shape
        assert found.weights.type_of(name) is source.weights.type_of(name)
        assert np.array_equal(found.weights.raw(name), source.weights.raw(name)), name
    assert result.num_bytes == (tmp_path / "again.gguf").stat().st_size
    assert sum(result.types.values()) == len(source.shapes)


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    _, folder = open_folder(tmp_path)
    export_gguf(folder, tmp_path / "again.gguf", ignore)
    reader = gguf.GGUFReader(tmp_path / "again.gguf")
    written = {tensor.name: tensor for tensor in reader.tensors}
    for name, tensor in tensors_of(SMALL, mixed).items():
        theirs = gguf.dequantize(written[name].data, written[name].tensor_type)
        assert np.array_equal(theirs.reshape(tensor.shape), tensor.dequantize()), name
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["llama.rope.dimension_count"] == 16 and fields["llama.attention.head_count_kv"] == 2
    for key in ("tokens", "merges", "model", "pre", "bos_token_id", "eos_token_id"):
        assert fields[f"tokenizer.ggml.{key}"] == TOKENIZER[f"tokenizer.ggml.{key}"], key
    assert fields["tokenizer.chat_template"] == CHAT_TEMPLATE
    kinds = {3: "control", 4: "user-defined", 5: "unused"}
    for text, kind in zip(TOKENIZER["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True):  # type: ignore[call-overload]
        assert kinds.get(kind) == {"<tool>": "user-defined"}.get(
            text, "control" if text.startswith("<|") else None
        ) or (text == "<|")


def test_the_tokenizer_and_the_logits_stay(tmp_path: Path) -> None:
    source, folder = open_folder(tmp_path, "F32")
    export_gguf(folder, tmp_path / "again.gguf", ignore)
    found = open_checkpoint(tmp_path / "again.gguf")
    for text in (TEXT, "é ünïcode  \n\t two", "a<|start|>b<tool>c"):
        ids = source.tokenizer.encode(text, allow_special=True)
        assert found.tokenizer.encode(text, allow_special=True) == ids
    ids = source.tokenizer.encode(TEXT)
    assert np.array_equal(logits_of(found, ids), logits_of(source, ids))
    assert (found.tokenizer.bos_id, found.tokenizer.eos_ids) == (source.tokenizer.bos_id, source.tokenizer.eos_ids)


def test_a_file_becomes_a_file_with_its_vocabulary(tmp_path: Path) -> None:
    source, _ = open_folder(tmp_path)
    export_gguf(source, tmp_path / "again.gguf", ignore)
    before, after = (gguf.GGUFReader(path).fields for path in (source.path, tmp_path / "again.gguf"))
    for key in (key for key in before if key.startswith("tokenizer.")):
        assert after[key].contents() == before[key].contents()
        assert after[key].types == before[key].types


def test_vectors_become_float32(tmp_path: Path) -> None:
    source, _ = open_folder(tmp_path)
    halves = {name: replace(each, type=TensorType.F16, raw=each.dequantize().astype(np.float16).view(np.uint8))
              for name, each in tensors_of(SMALL, mixed).items() if len(each.shape) == 1}  # fmt: skip
    with CheckpointWriter(tmp_path / "halves", source) as sink:
        for name, tensor in {**tensors_of(SMALL, mixed), **halves}.items():
            sink.put(name, tensor)
    export_gguf(open_checkpoint(tmp_path / "halves"), tmp_path / "again.gguf", ignore)
    weights = open_checkpoint(tmp_path / "again.gguf").weights
    assert weights.type_of("output_norm.weight") is TensorType.F32
    assert np.array_equal(weights.dequantize("output_norm.weight"), halves["output_norm.weight"].dequantize())


def test_nothing_is_overwritten_and_nothing_left(tmp_path: Path) -> None:
    source, _ = open_folder(tmp_path)
    with pytest.raises(InputError, match=r"small\.gguf is there already"):
        export_gguf(source, source.path, ignore)

    def interrupt(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(source, tmp_path / "again.gguf", interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "small.gguf"]


def test_what_gguf_cannot_say(tmp_path: Path) -> None:
    source, _ = open_folder(tmp_path, "F32")
    with CheckpointWriter(tmp_path / "gelu", source) as sink:
        for name, tensor in tensors_of(SMALL, all_of("F32")).items():
            sink.put(name, tensor)
        sink.config = replace(source.config, activation="gelu")
    with pytest.raises(UnsupportedError, match="no keys for activation = 'gelu'"):
        export_gguf(open_checkpoint(tmp_path / "gelu"), tmp_path / "again.gguf", ignore)


def test_readings_are_told(tmp_path: Path) -> None:
    source, _ = open_folder(tmp_path)
    with CheckpointWriter(tmp_path / "read", source) as sink:
        for name, tensor in tensors_of(SMALL, mixed).items():
            sink.put(name, tensor)
        sink.readings = {"default": "int8"}
    (note,) = export_gguf(open_checkpoint(tmp_path / "read"), tmp_path / "again.gguf", ignore).notes
    assert note.startswith("the readings of this model ('int8') stay behind")
