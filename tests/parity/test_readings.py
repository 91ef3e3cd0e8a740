"""A folder's readings decide how the native backend executes it, from the folder and from its artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from subsecond.backends import native
from subsecond.backends.batch import Float32, ForwardBatch
from subsecond.backends.native.weight_formats import Weights
from subsecond.models.checkpoint import open_checkpoint
from tests.unit.models.test_hf_folder import CONFIG, tiny_tensors, write_folder, write_tokenizer

NESTED: tuple[Weights, ...] = ("nested8", "nested4")
MIXTURE = {"default": "int8", "blk.1.ffn_down.weight": "int4", "blk.0.attn_output.weight": "stored"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_folder(tmp_path / "tiny", {**CONFIG, "subsecond": {"readings": MIXTURE}}, tiny_tensors())
    write_tokenizer(made)
    return made


def run(folder: Path, weights: Weights | None = None) -> tuple[str, Float32]:
    """The variant and the logits of some tokens."""
    checkpoint = open_checkpoint(folder)
    backend = native.load(checkpoint, isa="scalar", num_threads=1, context_tokens=64, weights=weights)
    rows = np.arange(5, dtype=np.int32)
    tables = np.zeros((1, 1), np.int32)
    logits = backend.forward(ForwardBatch(rows + 7, rows, np.zeros(5, np.int32), tables, rows)).copy()
    variant = backend.variant
    backend.close()
    return variant.partition("/")[0], logits


def test_a_mixture_runs_the_same_from_folder_and_artifact(folder: Path) -> None:
    variant, logits = run(folder)
    assert variant == "faithful+int8+int4"
    found = {weights: run(folder, weights) for weights in ("stored", "int8", "int4")}
    assert {name: one[0] for name, one in found.items()} == {"stored": "faithful", "int8": "int8", "int4": "int4"}
    assert not any(np.array_equal(logits, one) for _, one in found.values())
    spread = np.abs(found["stored"][1]).max()
    assert np.abs(logits - found["stored"][1]).max() < 0.5 * spread

    native.write_artifact(open_checkpoint(folder), folder)
    packed = open_checkpoint(folder)
    assert packed.artifact is not None and packed.artifact.manifest.packing["weights"] == "mixed"
    assert native.is_packed(packed, "mixed") and not native.is_packed(packed, "int8")
    again, packed_logits = run(folder)
    assert again == variant
    np.testing.assert_array_equal(packed_logits, logits)
    np.testing.assert_array_equal(run(folder, "int8")[1], found["int8"][1])


def test_an_artifact_of_nested_weights_serves_both_readings(folder: Path) -> None:
    found = {weights: run(folder, weights) for weights in NESTED}
    assert {name: variant for name, (variant, _) in found.items()} == {name: name for name in NESTED}
    assert not np.array_equal(found["nested8"][1], found["nested4"][1])
    native.write_artifact(open_checkpoint(folder), folder, weights="nested8")
    (folder / "model.safetensors").rename(folder / "gone")  # so that nothing can be packed anew
    for weights in NESTED:
        assert native.is_packed(open_checkpoint(folder), weights)
        variant, logits = run(folder, weights)
        assert variant == weights
        np.testing.assert_array_equal(logits, found[weights][1])


def test_sparse_weights_have_the_logits_of_stored_ones(folder: Path) -> None:
    tensors = {name: array.astype(np.float16) for name, array in tiny_tensors().items()}
    for name, array in tensors.items():
        if "proj" in name:
            array[np.abs(array) < 0.7] = 0
    write_folder(folder, CONFIG, tensors)
    (variant, stored), (sparse_variant, sparse) = run(folder, "stored"), run(folder, "sparse")
    assert (variant, sparse_variant) == ("faithful", "sparse")
    np.testing.assert_array_equal(sparse, stored)
    native.write_artifact(open_checkpoint(folder), folder, weights="sparse")
    assert native.is_packed(open_checkpoint(folder), "sparse")
    np.testing.assert_array_equal(run(folder)[1], stored)


def test_readings_of_one_kind_are_the_weights_of_that_name(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "subsecond": {"readings": {"default": "int8"}}}))
    np.testing.assert_array_equal(run(folder)[1], run(folder, "int8")[1])
    native.write_artifact(open_checkpoint(folder), folder)
    assert native.is_packed(open_checkpoint(folder), "int8")
