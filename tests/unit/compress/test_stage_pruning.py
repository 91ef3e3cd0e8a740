"""Stages that remove structure write models that load, compute what was meant, and go on after they were ended."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from subsecond.compress import stage_prune_depth, stage_prune_heads, stage_prune_width, stage_sparsify
from subsecond.compress.layer_removal import LayerRemoval
from subsecond.compress.prune_depth import renumbered, without_layers
from subsecond.compress.stage import Calibration, StageJob
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType
from subsecond.models.config import ModelConfig
from subsecond.models.families.registry import build_graph
from subsecond.models.weights import HeldWeights, StoredTensor
from tests.unit.compress.test_walk import tiny_weights
from tests.unit.compress.tiny_job import KeepingSink, changed, job_of, logits_of, result_logits
from tests.unit.tiny_decoder import TINY, tiny_shapes

WINDOW = np.arange(20, 36, dtype=np.int32)
Shapes = dict[str, tuple[int, ...]]


def fused(config: ModelConfig) -> tuple[ModelConfig, Shapes]:
    """A family that has query, key and value in one matrix, and gate and up in another."""
    config = replace(config, family="phi3", rope_pairing="half")
    shapes = tiny_shapes(config, is_tied=False)
    for layer in range(config.num_layers):
        blk = f"blk.{layer}"
        for kind in ("q", "k", "v"):
            del shapes[f"{blk}.attn_{kind}.weight"]
        del shapes[f"{blk}.ffn_gate.weight"]
        heads = config.num_heads + 2 * config.num_kv_heads
        shapes[f"{blk}.attn_qkv.weight"] = (heads * config.head_dim, config.width)
        shapes[f"{blk}.ffn_up.weight"] = (2 * config.ff_width, config.width)
    return config, shapes


def qwen(config: ModelConfig) -> tuple[ModelConfig, Shapes]:
    config = replace(config, family="qwen2", rope_pairing="half")
    return config, tiny_shapes(config)


FORMS = {"llama": lambda config: (config, tiny_shapes(config)), "qwen2": qwen, "phi3": fused}


def kept_rows(original: np.ndarray, kept: np.ndarray) -> list[int]:
    return [int(np.flatnonzero((original == row).all(axis=1))[0]) for row in kept]


@pytest.mark.parametrize("family", FORMS)
def test_narrower_parts_compute_what_the_neurons_that_stay_do(family: str, tmp_path: Path) -> None:
    config, shapes = FORMS[family](TINY)
    job, sink = job_of(config, shapes, tmp_path)
    stage_prune_width.run(job, stage_prune_width.Settings(keep=0.8, refit=False))
    assert sink.config.ff_width == 32 and sink.readings == {}
    weights, arrays = job.checkpoint.weights, {}
    for layer in range(config.num_layers):
        up, down = f"blk.{layer}.ffn_up.weight", f"blk.{layer}.ffn_down.weight"
        kept = kept_rows(weights.dequantize(up)[: config.ff_width], sink.tensors[up].dequantize()[:32])
        assert kept == sorted(kept) and len(set(kept)) == 32
        arrays[down] = np.zeros(shapes[down], np.float32)
        arrays[down][:, kept] = sink.tensors[down].dequantize()
        assert sink.tensors[down].type is TensorType.F16
    expected = logits_of(config, changed(weights, arrays), WINDOW)
    np.testing.assert_allclose(result_logits(sink, WINDOW), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FORMS)
def test_fewer_heads_compute_what_the_groups_that_stay_do(family: str, tmp_path: Path) -> None:
    config, shapes = FORMS[family](TINY)
    job, sink = job_of(config, shapes, tmp_path)
    result = stage_prune_heads.run(job, stage_prune_heads.Settings(keep=0.5, refit=False))
    assert (sink.config.num_heads, sink.config.num_kv_heads, sink.config.head_dim) == (2, 1, 8)
    weights, arrays = job.checkpoint.weights, {}
    query = "attn_qkv" if family == "phi3" else "attn_q"
    for layer in range(config.num_layers):
        name, output = f"blk.{layer}.{query}.weight", f"blk.{layer}.attn_output.weight"
        kept = kept_rows(weights.dequantize(name), sink.tensors[name].dequantize())[:16]
        assert kept in ([*range(16)], [*range(16, 32)])
        assert result.decisions[layer].what.startswith(f"key/value heads {int(kept[0] == 0)} removed")
        arrays[output] = np.zeros(shapes[output], np.float32)
        arrays[output][:, kept] = sink.tensors[output].dequantize()
    expected = logits_of(config, changed(weights, arrays), WINDOW)
    np.testing.assert_allclose(result_logits(sink, WINDOW), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", [stage_prune_width, stage_prune_heads])
def test_fitting_what_stays_moves_the_model_less(stage: object, tmp_path: Path) -> None:
    errors = []
    for refit in (False, True):
        job, sink = job_of(TINY, tiny_shapes(TINY), tmp_path / str(refit))
        result = stage.run(job, stage.Settings(keep=0.5, refit=refit))  # type: ignore[attr-defined]
        errors.append(distance(job, sink))
    assert errors[1] < 0.95 * errors[0]
    fitted = {each.part for each in result.decisions if each.what == "fitted"}
    assert fitted == ({"blk.1.attn_output.weight"} if stage is stage_prune_width else set())  # nothing is lost before
    for each in result.decisions:
        if each.part in fitted:
            assert 0 < each.figures["relative_change"] < 1
            continue
        assert each.figures["relative_error"] < each.figures["relative_error_without_fit"]


def distance(job: StageJob, sink: KeepingSink) -> float:
    """Mean square difference of the logits of model and result on the calibration windows."""
    config, weights = job.checkpoint.config, job.checkpoint.weights
    windows = job.calibration.windows
    return float(np.mean([np.square(result_logits(sink, w) - logits_of(config, weights, w)).mean() for w in windows]))


def test_blocks_are_not_widened_to_give_back_what_is_lost(tmp_path: Path) -> None:
    config = replace(DEEP, width=32, head_dim=8)
    shapes = tiny_shapes(config)
    arrays = tiny_weights(shapes)
    blocks = np.random.default_rng(5).integers(0, 255, (32, 34), dtype=np.uint8)
    blocks[:, :2] = np.array([0.01], "<f2").view(np.uint8)
    tensors = {each: StoredTensor(TensorType.F32, shapes[each], arrays.raw(each)) for each in shapes}
    names = [f"blk.{layer}.attn_output.weight" for layer in range(6)]
    tensors |= {name: StoredTensor(TensorType.Q8_0, (32, 32), blocks.reshape(-1)) for name in names}
    job, sink = job_of(config, shapes, tmp_path, HeldWeights(tensors))
    result = stage_prune_depth.run(job, stage_prune_depth.Settings(keep=0.85))
    assert {sink.tensors[name].type for name in names[:5]} == {TensorType.Q8_0}
    left = [each for each in result.decisions if each.what == "left as it is"]
    assert left and all("Q8_0 is smaller" in each.why and "attn_output" in each.part for each in left)


def test_neurons_that_the_loss_does_not_feel_leave_first(tmp_path: Path) -> None:
    shapes = tiny_shapes(TINY)
    weights = tiny_weights(shapes)
    arrays, idle = {}, np.arange(0, shapes["blk.0.ffn_up.weight"][0], 5)
    for layer in range(TINY.num_layers):
        arrays[f"blk.{layer}.ffn_down.weight"] = weights.dequantize(f"blk.{layer}.ffn_down.weight").copy()
        arrays[f"blk.{layer}.ffn_down.weight"][:, idle] *= 1e-4
    weights = changed(weights, arrays)
    job, sink = job_of(TINY, shapes, tmp_path, weights)
    settings = stage_prune_width.Settings(keep=0.8, method="taylor", gradient_windows=2, refit=False)
    stage_prune_width.run(job, settings)
    assert distance(job, sink) < 1e-4
    assert (tmp_path / "scores.json").is_file()
    for segment in tmp_path.glob("segment-*"):
        shutil.rmtree(segment)
    again, same = job_of(TINY, shapes, tmp_path, weights)
    told: list[str] = []
    stage_prune_width.run(replace(again, progress=lambda what, *_: told.append(what)), settings)
    assert not any(what.startswith("gradients") for what in told), "scores are not computed again"
    assert bytes_of(same) == bytes_of(sink)


def test_rows_of_blocks_stay_as_they_are_stored(tmp_path: Path) -> None:
    config = replace(TINY, width=32, head_dim=8)
    shapes = tiny_shapes(config)
    arrays = tiny_weights(shapes)
    name = "blk.0.ffn_gate.weight"
    blocks = np.random.default_rng(5).integers(0, 255, (40, 18), dtype=np.uint8)  # Q8_0 would be 34 bytes, Q4_0 is 18
    blocks[:, :2] = np.array([0.01], "<f2").view(np.uint8)
    tensors = {each: StoredTensor(TensorType.F32, shapes[each], arrays.raw(each)) for each in shapes}
    tensors[name] = StoredTensor(TensorType.Q4_0, (40, 32), blocks.reshape(-1))
    job, sink = job_of(config, shapes, tmp_path, HeldWeights(tensors))
    stage_prune_width.run(job, stage_prune_width.Settings(keep=0.8))
    found = sink.tensors[name]
    assert (found.type, found.shape) == (TensorType.Q4_0, (32, 32))
    assert {bytes(row) for row in found.raw.reshape(32, 18)} <= {bytes(row) for row in blocks}
    assert np.isfinite(result_logits(sink, WINDOW)).all()


def test_what_cannot_be_pruned_is_refused(tmp_path: Path) -> None:
    config = replace(TINY, ff_width=32)
    job, _ = job_of(config, tiny_shapes(config), tmp_path)
    with pytest.raises(InputError, match="nothing would be removed"):
        stage_prune_width.run(job, stage_prune_width.Settings(keep=0.5))
    with pytest.raises(InputError, match="is all of them"):
        stage_prune_heads.run(job, stage_prune_heads.Settings(keep=0.9))
    with pytest.raises(InputError, match="is all of them"):
        stage_prune_depth.run(job, stage_prune_depth.Settings(keep=0.9))
    with pytest.raises(InputError, match="pattern 2:4"):
        stage_sparsify.Settings(pattern="2:4", density=0.3, method="wanda")


def test_heads_that_are_normalized_together_cannot_leave(tmp_path: Path) -> None:
    config = replace(TINY, family="olmo2", rope_pairing="half")
    shapes = tiny_shapes(config, is_tied=False)
    for layer in range(config.num_layers):
        blk = f"blk.{layer}"
        shapes[f"{blk}.post_attention_norm.weight"] = shapes.pop(f"{blk}.attn_norm.weight")
        shapes[f"{blk}.post_ffw_norm.weight"] = shapes.pop(f"{blk}.ffn_norm.weight")
        shapes[f"{blk}.attn_q_norm.weight"], shapes[f"{blk}.attn_k_norm.weight"] = (32,), (16,)
    job, _ = job_of(config, shapes, tmp_path)
    with pytest.raises(UnsupportedError, match="all heads together"):
        stage_prune_heads.run(job, stage_prune_heads.Settings(keep=0.5))


DEEP = replace(TINY, num_layers=6)


def kl_of_models(config: ModelConfig, weights: HeldWeights, removed: tuple[int, ...], windows: np.ndarray) -> float:
    """Mean KL by running both models whole."""
    shapes = {name: place for name in weights.shapes if (place := renumbered(name, removed)) is not None}
    smaller = HeldWeights({shapes[name]: weights._find(name) for name in shapes})
    rows = []
    for window in windows:
        logits = [
            logits_of(config, weights, window),
            logits_of(without_layers(config, removed), smaller, window),
        ]
        p, q = (each - np.logaddexp.reduce(each, axis=1, keepdims=True) for each in map(np.float64, logits))
        rows.append((np.exp(p) * (p - q)).sum(axis=1))
    return float(np.concatenate(rows).mean())


def test_divergence_without_layers_is_that_of_the_smaller_models() -> None:
    shapes = tiny_shapes(DEEP)
    weights = tiny_weights(shapes)
    windows = np.random.default_rng(8).integers(0, DEEP.vocab_size, (3, 16), dtype=np.int32)
    removal = LayerRemoval(build_graph(DEEP, shapes), weights, windows)
    influence = removal.influence(6, lambda *_: None)
    assert influence.shape == (6,) and (influence > 0).all()
    for removed, candidates in (((), (0, 3, 5)), ((3,), (2, 4)), ((0, 1), (4, 2))):
        found = removal.kl_without(removed, candidates, lambda *_: None)
        expected = [kl_of_models(DEEP, weights, tuple(sorted((*removed, each))), windows) for each in candidates]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_the_layer_that_does_nothing_leaves_first(tmp_path: Path) -> None:
    shapes = tiny_shapes(DEEP)
    weights = tiny_weights(shapes)
    idle = {name: np.zeros(shapes[name], np.float32) for name in ("blk.3.attn_output.weight", "blk.3.ffn_down.weight")}
    weights = changed(weights, idle)
    job, sink = job_of(DEEP, shapes, tmp_path, weights)
    result = stage_prune_depth.run(job, stage_prune_depth.Settings(keep=0.85, refit=False))
    assert [each.part for each in result.decisions] == ["blk.3"]
    assert result.decisions[0].figures["kl_to_the_original"] < 1e-6
    assert {each.option for each in result.rejections} == {"remove layer 2", "remove layer 4"}
    assert sink.config.num_layers == 5 and sink.readings == {"default": "int8"}
    np.testing.assert_allclose(result_logits(sink, WINDOW), logits_of(DEEP, weights, WINDOW), rtol=1e-4, atol=1e-4)


def with_windows(job: StageJob, count: int) -> StageJob:
    """The job with more text to learn from."""
    windows = np.random.default_rng(4).integers(0, TINY.vocab_size, (count, 16), dtype=np.int32)
    return replace(job, calibration=Calibration(windows, windows[:2], "drawn"))


def test_what_comes_after_a_removed_layer_makes_up_for_it(tmp_path: Path) -> None:
    shapes = tiny_shapes(DEEP)
    results, moved = {}, {}
    for refit in (False, True):
        job, sink = job_of(DEEP, shapes, tmp_path / str(refit))
        unseen = job.calibration.windows
        results[refit] = stage_prune_depth.run(
            with_windows(job, 64), stage_prune_depth.Settings(keep=0.85, refit=refit, correction=1.0)
        )
        logits = [(logits_of(DEEP, job.checkpoint.weights, each), result_logits(sink, each)) for each in unseen]
        moved[refit] = np.mean([np.square(found - expected).mean() for expected, found in logits])
    assert moved[True] < 0.7 * moved[False]
    gone = int(results[True].decisions[0].part.removeprefix("blk."))
    fitted = {each.part for each in results[True].decisions if each.what == "fitted"}
    assert fitted == {f"blk.{layer}.{name}.weight" for layer in range(gone, 5) for name in ("attn_output", "ffn_down")}
    for name in job.checkpoint.weights.shapes:
        place = renumbered(name, [gone])
        if place is not None and place not in fitted:
            assert np.array_equal(sink.tensors[place].raw, job.checkpoint.weights.raw(name)), name


def test_progress_only_rises(tmp_path: Path) -> None:
    shares: list[float] = []
    job, _ = job_of(DEEP, tiny_shapes(DEEP), tmp_path)
    job = replace(job, progress=lambda _, num_done, num_all: shares.append(num_done / num_all))
    stage_prune_depth.run(job, stage_prune_depth.Settings(keep=0.65, candidates=2))
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == 1


def test_a_choice_of_layers_that_was_ended_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stage_prune_depth.Settings(keep=0.65, candidates=2)
    whole, expected = job_of(DEEP, tiny_shapes(DEEP), tmp_path / "whole")
    stage_prune_depth.run(whole, settings)
    asked: list[tuple[int, ...]] = []
    measure = LayerRemoval.kl_without

    def ends(self: LayerRemoval, removed: tuple[int, ...], candidates: tuple[int, ...], tell: object) -> list[float]:
        asked.append(tuple(removed))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(self, removed, candidates, tell)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerRemoval, "kl_without", ends)
    job, _ = job_of(DEEP, tiny_shapes(DEEP), tmp_path / "ended")
    with pytest.raises(KeyboardInterrupt):
        stage_prune_depth.run(job, settings)
    job, sink = job_of(DEEP, tiny_shapes(DEEP), tmp_path / "ended")
    stage_prune_depth.run(job, settings)
    assert asked[0] == () and len(asked) == 3 and asked[1] == asked[2], "what was measured is not measured again"
    assert bytes_of(sink) == bytes_of(expected)


def bytes_of(sink: KeepingSink) -> dict[str, bytes]:
    return {name: tensor.raw.tobytes() for name, tensor in sink.tensors.items()}


def test_advice_about_sparse_models_goes_by_times_of_this_machine(tmp_path: Path) -> None:
    wide = replace(TINY, width=64, ff_width=96)
    job, _ = job_of(wide, tiny_shapes(wide), tmp_path)
    result = stage_sparsify.run(job, stage_sparsify.Settings(density=0.3, method="magnitude", refit=False))
    advice = [each.what for each in result.decisions if each.part == "model"]
    assert [("int8" in each, "int4" in each) for each in advice] == [(True, False), (False, True)]
    assert all("with 30% left" in each and "measured here" in each for each in advice)


@pytest.mark.parametrize("method", stage_sparsify.METHODS)
@pytest.mark.parametrize("ratios", ["uniform", "owl"])
def test_sparse_models_have_the_density_that_was_asked_for(method: str, ratios: str, tmp_path: Path) -> None:
    job, sink = job_of(TINY, tiny_shapes(TINY), tmp_path)
    result = stage_sparsify.run(job, stage_sparsify.Settings(density=0.4, method=method, ratios=ratios))
    assert sink.readings == {"default": "sparse"}
    advice = [each.what for each in result.decisions if each.part == "model"]
    assert len(advice) == 2
    assert all("from the bytes to read" in each for each in advice), "widths of 24 and 40 have no blocks to time"
    matrices = [name for name in sink.tensors if name.startswith("blk.") and len(sink.tensors[name].shape) == 2]
    left = sum(np.count_nonzero(sink.tensors[name].dequantize()) for name in matrices)
    total = sum(sink.tensors[name].dequantize().size for name in matrices)
    assert left / total == pytest.approx(0.4, abs=0.02)
    assert np.count_nonzero(sink.tensors["token_embd.weight"].dequantize()) == 50 * 24
    assert np.isfinite(result_logits(sink, WINDOW)).all()
    assert {each.part for each in result.decisions} == {*matrices, "model"}


def test_better_methods_leave_models_closer_to_the_original(tmp_path: Path) -> None:
    errors = []
    for method, refit in (("magnitude", False), ("wanda", False), ("swaps", False), ("swaps", True)):
        job, sink = job_of(TINY, tiny_shapes(TINY), tmp_path / f"{method} {refit}")
        stage_sparsify.run(job, stage_sparsify.Settings(density=0.5, method=method, refit=refit))
        errors.append(distance(job, sink))
    assert errors == sorted(errors, reverse=True)


def test_two_of_four_weights_stay_for_graphics_processors(tmp_path: Path) -> None:
    job, sink = job_of(TINY, tiny_shapes(TINY), tmp_path)
    stage_sparsify.run(job, stage_sparsify.Settings(pattern="2:4", method="sparsegpt"))
    assert sink.readings == {}
    for name, tensor in sink.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            assert np.count_nonzero(tensor.dequantize().reshape(-1, 4), axis=1).max() <= 2
