"""A checkpoint opens files and artifacts, parses nothing that is not needed, and uses only an artifact that fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.artifact import ArtifactWriter
from subsecond.formats.artifact_manifest import SourceFile
from subsecond.models import checkpoint
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from tests.unit.tiny_decoder import TINY, kinds, tiny_graph, tiny_shapes


def write_gguf(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    architecture: str = "llama",
    tokens: Sequence[str] = (),
    chat_template: str = "",
) -> Path:
    """A GGUF file whose tensors count up, with a byte-level vocabulary of `tokens` where there are any."""
    writer = gguf.GGUFWriter(path, architecture)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(list(tokens))
        writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
        writer.add_token_merges([f"{tokens[1]} {tokens[2]}"])
        writer.add_eos_token_id(0)
        writer.add_chat_template(chat_template)
    writer.add_name(TINY.name)
    writer.add_block_count(TINY.num_layers)
    writer.add_context_length(TINY.context_length)
    writer.add_embedding_length(TINY.width)
    writer.add_feed_forward_length(TINY.ff_width)
    writer.add_head_count(TINY.num_heads)
    writer.add_head_count_kv(TINY.num_kv_heads)
    writer.add_key_length(TINY.head_dim)
    writer.add_value_length(TINY.head_dim)
    writer.add_layer_norm_rms_eps(TINY.norm_eps)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", tiny_shapes(TINY))


def pack(opened: Checkpoint, folder: Path) -> None:
    """An artifact of the model with one vector in it."""
    about = {"model": opened.config.to_json(), "source": opened.source, "shapes": opened.shapes}
    with ArtifactWriter(folder, **about, packing={"layout": 1}) as writer:  # type: ignore[arg-type]
        norm = opened.weights.dequantize("output_norm.weight")
        writer.add_tensor("output_norm.weight", norm.view(np.uint8), packed_format="vector", n=1, k=norm.size)


def test_a_gguf_file(model: Path) -> None:
    opened = open_checkpoint(model)
    assert opened.artifact is None
    assert (opened.config.width, opened.config.num_layers) == (TINY.width, TINY.num_layers)
    assert opened.graph().ops[1:] and kinds(opened.graph()) == kinds(tiny_graph())
    assert opened.chat_template is None
    assert opened.shapes == tiny_shapes(TINY)
    assert np.array_equal(opened.weights.dequantize("output_norm.weight"), np.arange(TINY.width))
    assert opened.weights.type_of("output_norm.weight").name == "F32"
    assert opened.weights.raw("output_norm.weight").size == 4 * TINY.width
    with pytest.raises(FormatError, match="no tensor 'head'"):
        opened.weights.raw("head")


def test_a_tensor_of_another_shape_or_none(tmp_path: Path) -> None:
    shapes = tiny_shapes(TINY)
    wrong = write_gguf(tmp_path / "wrong.gguf", shapes | {"blk.0.ffn_down.weight": (TINY.ff_width, TINY.width)})
    with pytest.raises(FormatError, match=r"'blk\.0\.ffn_down\.weight' has shape"):
        open_checkpoint(wrong).graph()
    del shapes["output_norm.weight"]
    with pytest.raises(FormatError, match=r"less\.gguf: the model file has no tensor 'output_norm\.weight'"):
        open_checkpoint(write_gguf(tmp_path / "less.gguf", shapes)).graph()
    more = tiny_shapes(TINY) | {"blk.0.attn_q_norm.weight": (8,)}
    with pytest.raises(UnsupportedError, match=r"more\.gguf: the model file has 1 tensors"):
        open_checkpoint(write_gguf(tmp_path / "more.gguf", more)).graph()


def test_an_unknown_family_is_named_first(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="'mamba' is not supported; the nearest known one is 'llama'"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", tiny_shapes(TINY), "mamba"))


def test_the_artifact_beside_a_file_is_used_and_the_file_not_parsed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_file = open_checkpoint(model)
    pack(from_file, model.parent)

    def refuse(path: Path) -> object:
        raise AssertionError(f"{path} is parsed")

    monkeypatch.setattr(checkpoint, "_open_gguf", refuse)
    opened = open_checkpoint(model)
    assert opened.artifact is not None
    assert opened.config == from_file.config
    assert opened.graph().ops == from_file.graph().ops
    assert opened.source_sha256 == from_file.source_sha256


def test_the_original_weights_are_read_when_the_file_is_there(model: Path, tmp_path: Path) -> None:
    pack(open_checkpoint(model), model.parent)
    assert open_checkpoint(model).weights.shapes == tiny_shapes(TINY)
    with pytest.raises(UnsupportedError, match=r"model\.gguf"):
        _ = open_checkpoint(model.parent).weights


def test_a_copied_file_keeps_its_artifact(model: Path) -> None:
    pack(open_checkpoint(model), model.parent)
    os.utime(model, ns=(1, 1))
    assert open_checkpoint(model).artifact is not None


def test_a_copied_file_is_read_in_full_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(open_checkpoint(model), model.parent)
    os.utime(model, ns=(1, 1))
    open_checkpoint(model)
    monkeypatch.setattr(checkpoint, "describe", None)
    assert open_checkpoint(model).artifact is not None


def test_a_new_time_that_cannot_be_noted_does_no_harm(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    pack(open_checkpoint(model), model.parent)
    os.utime(model, ns=(1, 1))
    monkeypatch.setattr("os.replace", refuse)
    assert open_checkpoint(model).artifact is not None
    assert {path.name for path in (model.parent / "subsecond").iterdir()} == {"manifest.json", "packed.bin"}


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_an_incomplete_artifact_beside_a_file_is_not_used(
    model: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    pack(open_checkpoint(model), model.parent)
    damage(model.parent / "subsecond" / "packed.bin")
    assert open_checkpoint(model).artifact is None
    assert f"`subsecond pull {model}` makes the artifact anew" in caplog.text


def test_an_artifact_can_be_left_alone(model: Path) -> None:
    pack(open_checkpoint(model), model.parent)
    assert open_checkpoint(model, can_use_artifact=False).artifact is None


def test_an_artifact_of_another_format_is_not_used(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(open_checkpoint(model), model.parent)
    manifest = model.parent / "subsecond" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    assert open_checkpoint(model).artifact is None
    assert "artifact version 1; this program reads version 2. `subsecond pull MODEL`" in caplog.text


def test_an_artifact_of_another_version_is_not_used(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(open_checkpoint(model), model.parent)
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    os.utime(model, ns=(1, 1))
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(model).artifact is None
    assert "another version" in caplog.text


def test_a_damaged_artifact_beside_a_file_is_not_used(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(open_checkpoint(model), model.parent)
    (model.parent / "subsecond" / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(model).artifact is None
    assert "not valid JSON" in caplog.text
    with pytest.raises(FormatError, match="not valid JSON"):
        open_checkpoint(model.parent)


def test_an_artifact_of_another_file_of_the_folder_is_left_alone(model: Path) -> None:
    pack(open_checkpoint(model), model.parent)
    other = write_gguf(model.with_name("other.gguf"), tiny_shapes(TINY))
    assert open_checkpoint(other).artifact is None


def test_an_artifact_with_a_wrong_configuration_is_refused(tmp_path: Path) -> None:
    source = SourceFile("model.gguf", "0" * 64, 1, 1)
    with ArtifactWriter(tmp_path, model={"family": "llama"}, source=source, shapes={}, packing={}):
        pass
    with pytest.raises(FormatError, match="missing"):
        open_checkpoint(tmp_path)


def test_tokenizer_and_template_survive_in_an_artifact(tmp_path: Path) -> None:
    printable = [chr(code) for code in range(0x21, 0x7F)]
    tokens = ["<end>", *printable, "\u0120", printable[0] + printable[1]]
    shapes = tiny_shapes(replace(TINY, vocab_size=len(tokens)))
    template = "{{ messages[0].content }}{{ eos_token }}"
    opened = open_checkpoint(write_gguf(tmp_path / "model.gguf", shapes, tokens=tokens, chat_template=template))
    with opened.artifact_writer(tmp_path / "packed", {"layout": 7}) as writer:
        writer.add_tensor("norm", np.ones(4, np.uint8), packed_format="vector", n=1, k=1)
    packed = open_checkpoint(tmp_path / "packed")
    assert packed.artifact is not None
    packed.artifact.verify()
    assert packed.artifact.manifest.packing == {"layout": 7}
    assert packed.tokenizer.encode('a b!"') == opened.tokenizer.encode('a b!"')
    assert packed.chat_template is not None
    assert packed.chat_template.render([{"role": "user", "content": "hi"}]) == "hi<end>"
    packed.artifact.file_path("tokenizer.json").write_text("{")
    with pytest.raises(FormatError, match=r"not valid JSON.*`subsecond pull .*model\.gguf` makes the artifact anew"):
        _ = open_checkpoint(tmp_path / "packed").tokenizer


def test_more_tokens_than_embedding_rows_are_refused(tmp_path: Path) -> None:
    tokens = ["<end>", *(chr(code) for code in range(0x21, 0x7F)), "\u0120", '!"']
    path = write_gguf(tmp_path / "model.gguf", tiny_shapes(TINY), tokens=tokens)
    with pytest.raises(FormatError, match="the embedding table only 50 rows"):
        _ = open_checkpoint(path).tokenizer


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        open_checkpoint(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="folder without"):
        open_checkpoint(tmp_path)
