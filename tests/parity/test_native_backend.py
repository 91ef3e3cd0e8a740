"""Whole graphs on the native backend: equal to the torch reference, and the same bits however a step is made up."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from subsecond.backends.batch import ForwardBatch, Int32
from subsecond.backends.native.weights import PackedWeights
from subsecond.core.errors import FormatError
from subsecond.graph.passes.pipeline import PASSES
from tests.parity.kernel_cases import ISAS
from tests.parity.native_models import CAUSAL_MODELS, MODELS, batch_of, run_alone, stored_model

BLOCKS = np.arange(20, dtype=np.int32)
OTHER_BLOCKS = np.arange(39, 19, -1, dtype=np.int32)


def tokens_of(count: int, seed: int = 1) -> Int32:
    return np.random.default_rng(seed).integers(0, 301, count, dtype=np.int32)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("isa", ISAS)
def test_logits_are_those_of_the_reference(isa: str, family: str) -> None:
    model, tokens = stored_model(family), tokens_of(70)
    expected = run_alone(model.reference(), tokens, 70, BLOCKS)
    actual = run_alone(model.native(isa), tokens, 70, BLOCKS)
    bound = 0.02 if isa == "amx" else 3e-3  # keys and values are rounded to 8 or 11 bits
    is_off = np.abs(actual - expected).max(-1) > bound * np.ptp(expected)
    # roundings of bfloat16 may lead a row to another expert where two are about as probable
    allowed = 0.1 if isa == "amx" and model.has_experts else 0.0
    assert is_off.mean() <= allowed, np.abs(actual - expected).max() / np.ptp(expected)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_passes_keep_every_bit(isa: str, family: str) -> None:
    model, tokens = stored_model(family), tokens_of(40)
    expected = run_alone(model.native(isa, until="none"), tokens, 40, BLOCKS)
    for name, _ in PASSES:
        np.testing.assert_array_equal(
            run_alone(model.native(isa, until=name), tokens, 40, BLOCKS), expected, err_msg=name
        )


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa not in ("scalar", "amx")])
def test_f32_instruction_sets_agree_in_every_bit(isa: str, family: str) -> None:
    model, tokens = stored_model(family), tokens_of(40)
    expected = run_alone(model.native("scalar"), tokens, 40, BLOCKS)
    np.testing.assert_array_equal(run_alone(model.native(isa), tokens, 40, BLOCKS), expected)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_same_bits_for_any_chunk_and_thread_count(isa: str) -> None:
    model, tokens = stored_model("llama"), tokens_of(600)
    expected = run_alone(model.native(isa), tokens, 512, BLOCKS)
    for num_threads in (1, 2, 3):
        backend = model.native(isa, num_threads=num_threads)
        for chunk in (1, 16, 64, 512, 37):
            np.testing.assert_array_equal(run_alone(backend, tokens, chunk, BLOCKS), expected)


@pytest.mark.parametrize("family", CAUSAL_MODELS)
@pytest.mark.parametrize("isa", ISAS)
def test_logits_with_keys_and_values_of_eight_bits_are_near(isa: str, family: str) -> None:
    model, tokens = stored_model(family), tokens_of(70)
    backend = model.native(isa, kv="int8")
    assert backend.variant.endswith("kv-int8")
    assert 0.5 < backend.kv_bytes / model.native(isa).kv_bytes < 0.6
    expected = run_alone(model.native(isa), tokens, 70, BLOCKS)
    actual = run_alone(backend, tokens, 70, BLOCKS)
    is_off = np.abs(actual - expected).max(-1) > 0.03 * np.ptp(expected)
    # a router may choose another expert where two are about as probable
    assert is_off.mean() <= (0.1 if model.has_experts else 0.0), np.abs(actual - expected).max() / np.ptp(expected)
    assert (actual != expected).any()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_same_bits_with_keys_and_values_of_eight_bits(isa: str) -> None:
    model, tokens = stored_model("llama"), tokens_of(300)
    expected = run_alone(model.native(isa, kv="int8"), tokens, 300, BLOCKS)
    for num_threads, chunks in ((1, (64,)), (2, (1, 300)), (3, (37,))):
        backend = model.native(isa, num_threads=num_threads, kv="int8")
        for chunk in chunks:
            np.testing.assert_array_equal(run_alone(backend, tokens, chunk, BLOCKS), expected)
    if isa != "amx":  # whose linears have an arithmetic of their own
        scalar = run_alone(model.native("scalar", kv="int8"), tokens[:90], 90, BLOCKS)
        np.testing.assert_array_equal(expected[:90], scalar)


@pytest.mark.parametrize("family", [name for name in CAUSAL_MODELS if name != "llama"])
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_same_bits_in_every_family(isa: str, family: str) -> None:
    model, tokens = stored_model(family), tokens_of(90)
    expected = run_alone(model.native(isa), tokens, 90, BLOCKS)
    for num_threads, chunk in ((1, 1), (2, 16), (3, 37), (3, 90)):
        backend = model.native(isa, num_threads=num_threads)
        np.testing.assert_array_equal(run_alone(backend, tokens, chunk, BLOCKS), expected)


@pytest.mark.parametrize("family", ["llama_experts", "gemma2", "bert"])
@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_beside_another_text(isa: str, family: str) -> None:
    """Experts, windows and whole texts: what is beside a text does not change it."""
    model, tokens, other = stored_model(family), tokens_of(50), tokens_of(70, seed=2)
    alone = run_alone(model.native(isa), tokens, 50, BLOCKS)
    both = model.native(isa, num_threads=3).forward(batch_of([(other, 0, OTHER_BLOCKS[:19]), (tokens, 0, BLOCKS[:19])]))
    np.testing.assert_array_equal(both[70:], alone)


@pytest.mark.parametrize("isa", ISAS)
def test_a_whole_text_is_asked_for_where_rows_see_later_ones(isa: str) -> None:
    backend = stored_model("bert").native(isa)
    with pytest.raises(ValueError, match="one step, from position 0"):
        backend.forward(batch_of([(tokens_of(3), 1, BLOCKS)]))


def test_positions_beyond_a_learned_table_are_refused() -> None:
    with pytest.raises(ValueError, match="position"):
        stored_model("gpt2").native("scalar").forward(batch_of([(tokens_of(2), 1023, np.zeros(40, np.int32))]))


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_same_bits_beside_seven_other_sequences(isa: str) -> None:
    model, tokens = stored_model("llama"), tokens_of(50)
    alone = run_alone(model.native(isa), tokens, 50, BLOCKS)
    backend = model.native(isa)
    tables = np.random.default_rng(2).permutation(40).astype(np.int32).reshape(8, 5)
    others = [tokens_of(50, seed) for seed in range(2, 9)]
    mine, at = [], 0
    for count in (1, 7, 20, 1, 1, 20):
        parts = [(tokens[at : at + count], at, tables[0])]
        parts += [(ids[at : at + count], at, table) for ids, table in zip(others, tables[1:], strict=True)]
        order = np.random.default_rng(at).permutation(8)
        logits = backend.forward(batch_of([parts[i] for i in order])).reshape(8, count, -1)
        mine.append(logits[int(np.flatnonzero(order == 0)[0])].copy())
        at += count
    np.testing.assert_array_equal(np.concatenate(mine), alone)


@pytest.mark.parametrize("isa", ISAS)
def test_only_selected_rows_and_none(isa: str) -> None:
    model, tokens = stored_model("qwen2"), tokens_of(33)
    backend = model.native(isa)
    whole = run_alone(backend, tokens, 33, BLOCKS)
    some = np.array([0, 5, 32], np.int32)
    np.testing.assert_array_equal(backend.forward(batch_of([(tokens, 0, OTHER_BLOCKS)], selected=some)), whole[some])
    assert backend.forward(batch_of([(tokens, 0, BLOCKS)], selected=np.array([], np.int32))).shape == (0, 301)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_ids", [301], "token id"),
        ("token_ids", [-1], "token id"),
        ("positions", [640], "position"),
        ("positions", [-1], "position"),
        ("row_sequence", [1], "row_sequence"),
        ("block_tables", [[40]], "block table"),
        ("block_tables", [[-1]], "block table"),
        ("logits_rows", [1], "logits_rows"),
        ("logits_rows", [0, 0], "logits_rows"),
        ("positions", [0, 1], "different lengths"),
    ],
)
def test_a_malformed_step_is_refused(field: str, value: list[int], message: str) -> None:
    arrays = {
        "token_ids": np.array([5], np.int32),
        "positions": np.array([0], np.int32),
        "row_sequence": np.array([0], np.int32),
        "block_tables": np.arange(20, dtype=np.int32)[None],
        "logits_rows": np.array([0], np.int32),
    }
    arrays[field] = np.array(value, np.int32)
    with pytest.raises(ValueError, match=message):
        stored_model("llama").native("scalar").forward(ForwardBatch(**arrays))


@pytest.mark.parametrize("name", ["blk.0.ffn_down.weight", "token_embd.weight", "output_norm.weight"])
def test_packed_weights_of_another_shape_are_refused(name: str) -> None:
    """An artifact may say anything: what the kernels get must have the shapes of the graph."""
    model = stored_model("llama")
    matrices, vectors = dict(model.packed.matrices), dict(model.packed.vectors)
    if name in vectors:
        vectors[name] = vectors[name][:-1]
    else:
        matrices[name] = matrices["blk.0.attn_k.weight"]
    with pytest.raises(FormatError, match=name):
        replace(model, packed=PackedWeights(matrices, vectors)).native("scalar")
    del matrices["blk.1.attn_q.weight"]
    with pytest.raises(FormatError):
        replace(model, packed=PackedWeights(matrices, vectors)).native("scalar")


def test_a_forked_child_computes_too() -> None:
    """A child inherits no threads: with the parent's pool it would wait for them for ever."""
    backend, tokens = stored_model("llama").native("scalar", num_threads=2), tokens_of(3)
    expected = run_alone(backend, tokens, 3, BLOCKS)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(run_alone(backend, tokens, 3, BLOCKS), expected) else 1)
    deadline = time.monotonic() + 120  # which only a child that hangs comes to
    done, status = os.waitpid(child, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.05)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done, "the child hangs"
    assert status == 0


def test_a_damaged_value_shows_in_the_logits() -> None:
    model, tokens = stored_model("llama"), tokens_of(5)
    vectors = dict(model.packed.vectors)
    vectors["blk.1.ffn_norm.weight"] = np.full_like(vectors["blk.1.ffn_norm.weight"], np.nan)
    for isa in ISAS:
        logits = run_alone(
            replace(model, packed=PackedWeights(model.packed.matrices, vectors)).native(isa), tokens, 5, BLOCKS
        )
        assert np.isnan(logits).all()
