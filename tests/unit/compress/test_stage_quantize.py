"""The stage rounds every linear of the layers by each method, and what it writes is what later segments saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from subsecond.compress import stage_mixed, stage_quantize
from subsecond.compress.kernel_times import Kernel, step_seconds, time_kernels
from subsecond.compress.layer_groups import bits_of, layer_groups
from subsecond.compress.stage import StageJob
from subsecond.compress.stage_quantize import Settings
from subsecond.compress.walk import Walk
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType
from subsecond.graph.graph import Graph
from subsecond.models.weights import HeldWeights, stored_tensor
from tests.unit.compress.small_model import logits_of, mean_kl, put_by, small_graph, small_job, small_windows


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def kl_of(job: StageJob) -> float:
    """Mean KL of what the stage wrote against the original."""
    graph: Graph = job.checkpoint.graph()
    windows = small_windows(2, seed=9)
    original = logits_of(graph, job.checkpoint.weights, windows)  # type: ignore[arg-type]
    return mean_kl(original, logits_of(graph, HeldWeights(put_by(job)), windows))


@pytest.mark.parametrize("method", ["gptq", "search", "fit", "nearest", "awq", "autoround", "hqq"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_every_method_rounds_all_linears(tmp_path: Path, method: str, family: str) -> None:
    job = small_job(tmp_path, small_graph(family))
    result = stage_quantize.run(job, Settings(method=method, steps=20))
    put = put_by(job)
    assert set(put) == set(job.checkpoint.graph().weights)
    expected = TensorType.Q4_1 if method == "hqq" else TensorType.Q4_0
    for group in layer_groups(job.checkpoint.graph()):
        for name in group.weights:
            assert put[name].type is expected, name
    assert put["token_embd.weight"].type is TensorType.Q8_0
    assert 1e-5 < kl_of(job) < 0.3
    figures = [decision.figures for decision in result.decisions if "relative_error" in decision.figures]
    assert len(figures) >= 8
    assert all(0 < each["relative_error"] < 0.2 and 4.5 <= each["bits_per_weight"] <= 5 for each in figures)


def test_gptq_loses_less_than_plain_rounding(tmp_path: Path) -> None:
    losses = {}
    for method in ("nearest", "gptq"):
        job = small_job(tmp_path / method)
        stage_quantize.run(job, Settings(method=method))
        losses[method] = kl_of(job)
    assert losses["gptq"] < losses["nearest"]


def test_corrections_give_back_what_the_stream_has_lost(tmp_path: Path) -> None:
    """On the text that was learned from, the streams behind the last layer come closer to the original ones."""
    distances = []
    for correction in (0.0, 1.0):
        job = small_job(tmp_path / str(correction))
        stage_quantize.run(job, Settings(correction=correction))
        streams = []
        for weights in (job.checkpoint.weights, HeldWeights(put_by(job))):
            walk = Walk(job.checkpoint.graph(), weights, job.calibration.windows)
            for visit in walk.visits():
                if visit.segment.name == "head":
                    streams.append(next(iter(walk.states.values())).copy())
                visit.advance()
        moved = ((streams[1] - streams[0]) ** 2).sum(axis=1) / (streams[0] ** 2).sum(axis=1)
        distances.append(float(moved.mean()))
    assert distances[1] < 0.95 * distances[0]


def test_eight_bits_lose_little_and_may_be_read_as_int8(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    settings = Settings(bits="8", reading="int8")
    assert not stage_quantize.needs_calibration(settings)
    stage_quantize.run(job, settings)
    assert kl_of(job) < 1e-3
    assert job.sink.readings == {"default": "int8"}
    assert {tensor.type.name for tensor in put_by(job).values()} == {"Q8_0", "F32"}


def test_a_head_of_its_own_and_the_table_have_their_bits(tmp_path: Path) -> None:
    job = small_job(tmp_path, small_graph(is_tied=False))
    stage_quantize.run(job, Settings(method="nearest", head_bits="8", table_bits="16"))
    put = put_by(job)
    assert put["output.weight"].type is TensorType.Q8_0
    assert put["token_embd.weight"].type is TensorType.F16
    tied = small_job(tmp_path / "tied")
    stage_quantize.run(tied, Settings(method="nearest", head_bits="4", table_bits="16"))
    assert put_by(tied)["token_embd.weight"].type is TensorType.F16


def test_few_bits_of_head_and_table_are_searched(tmp_path: Path) -> None:
    errors = {}
    for method in ("nearest", "fit"):
        job = small_job(tmp_path / method, small_graph(is_tied=False))
        stage_quantize.run(job, Settings(method=method, head_bits="4", table_bits="4"))
        put = put_by(job)
        assert [put[name].type.name for name in ("output.weight", "token_embd.weight")] == ["Q4_0", "Q4_0"]
        weight = job.checkpoint.weights.dequantize("token_embd.weight")
        errors[method] = float(np.square(put["token_embd.weight"].dequantize() - weight).sum())
    assert errors["fit"] < 0.95 * errors["nearest"]


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_head_of_few_bits_learns_from_what_it_reads(tmp_path: Path, is_tied: bool) -> None:
    """Judged as a head alone: as a table of random values a tied one loses more by gptq, a real one does not."""
    name = "token_embd.weight" if is_tied else "output.weight"
    losses = {}
    for method in ("search", "gptq"):
        job = small_job(tmp_path / method, small_graph(is_tied=is_tied))
        settings = Settings(method=method, head_bits="4", table_bits="4" if is_tied else "8")
        decisions = stage_quantize.run(job, settings).decisions
        done = [each for each in decisions if each.part == name.removesuffix(".weight")]
        assert [each.what for each in done] == [f"Q4_0 by {method}"]
        plain = {each: stored_tensor(job.checkpoint.weights, each) for each in job.checkpoint.graph().weights}
        plain["output.weight"] = plain[name]
        original, held = HeldWeights(plain), HeldWeights({**plain, "output.weight": put_by(job)[name]})
        graph, windows = small_graph(is_tied=False), small_windows(4, seed=11)
        losses[method] = mean_kl(logits_of(graph, original, windows), logits_of(graph, held, windows))
    assert losses["gptq"] < 0.9 * losses["search"]


def test_awq_folds_its_scales_into_norms_and_rows(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    stage_quantize.run(job, Settings(method="awq"))
    name = "blk.0.attn_norm.weight"
    assert put_by(job)[name].type is TensorType.F32
    assert not np.allclose(put_by(job)[name].dequantize(), job.checkpoint.weights.dequantize(name))


def test_widths_without_blocks_stay_in_half_precision(tmp_path: Path) -> None:
    job = small_job(tmp_path, small_graph(ff_width=72))
    stage_quantize.run(job, Settings())
    assert put_by(job)["blk.0.ffn_down.weight"].type is TensorType.F16
    assert put_by(job)["blk.0.ffn_up.weight"].type is TensorType.Q4_0


def test_few_bits_are_refused_with_the_reason() -> None:
    for bits, reason in (("3", "2.6 on SmolLM2-135M"), ("2", "useless")):
        with pytest.raises(UnsupportedError, match=reason):
            Settings(bits=bits)
        with pytest.raises(InputError, match="held in half precision"):
            Settings(bits=bits, forced=True)
    with pytest.raises(InputError, match="4 bits only"):
        Settings(method="hqq", bits="8")
    with pytest.raises(InputError, match="give 4, 5, 8, 16, or something between by the stage mixed"):
        Settings(bits="6")
    assert Settings(bits="3", forced=True, blocks="gguf").bits == "3"


@pytest.mark.parametrize(
    ("bits", "expected"), [("2", "Q2_K"), ("3", "Q3_K"), ("4", "Q4_K"), ("5", "Q5_K"), ("6", "Q6_K")]
)
def test_super_blocks_where_widths_allow(tmp_path: Path, bits: str, expected: str) -> None:
    graph = small_graph(width=256, ff_width=256, num_heads=4, num_kv_heads=2, head_dim=64, rope_dims=64)
    job = small_job(tmp_path, graph)
    stage_quantize.run(job, Settings(bits=bits, blocks="gguf", forced=True))
    assert put_by(job)["blk.0.ffn_up.weight"].type.name == expected


@pytest.mark.parametrize("method", ["gptq", "search"])
def test_mixed_types_keep_the_budget_and_lose_less_than_uniform_ones(tmp_path: Path, method: str) -> None:
    settings = stage_mixed.Settings(bits=5.5, method=method, measured_windows=2)
    shares: list[float] = []
    job = replace(
        small_job(tmp_path / "mixed"), progress=lambda _, num_done, num_all: shares.append(num_done / num_all)
    )
    result = stage_mixed.run(job, settings)
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == 1
    groups = layer_groups(job.checkpoint.graph())
    put = put_by(job)
    bits = sum(bits_of(put[name].type) * put[name].dequantize().size for g in groups for name in g.weights)
    total = sum(group.num_weights for group in groups)
    assert 4.5 < bits / total <= 5.5
    assert {put[name].type.name for g in groups for name in g.weights} >= {"Q4_0", "Q8_0"}
    for group in groups:
        assert len({put[name].type for name in group.weights}) == 1
    uniform = small_job(tmp_path / "uniform")
    stage_quantize.run(uniform, Settings(method=method))
    assert kl_of(job) < 0.9 * kl_of(uniform)
    assert job.sink.readings == {}
    assert "expected mean KL" in result.decisions[0].why
    assert [rejection.option for rejection in result.rejections] == [
        f"{n} in every layer" for n in ("Q4_0", "Q5_0", "Q8_0", "F16")
    ]


def test_a_mixed_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    settings = stage_mixed.Settings(bits=5.5, measured_windows=1, method="search")
    whole, ended = small_job(tmp_path / "a"), small_job(tmp_path / "b")
    stage_mixed.run(whole, settings)

    def stop(name: str, done: int, count: int) -> None:
        if name == "blk.1.attn" and count == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage_mixed.run(StageJob(ended.checkpoint, ended.sink, ended.calibration, ended.folder, stop), settings)
    assert not put_by(ended)
    said: list[str] = []
    again = StageJob(ended.checkpoint, ended.sink, ended.calibration, ended.folder, lambda name, *_: said.append(name))
    stage_mixed.run(again, settings)
    assert not any(name.startswith("estimating") for name in said)
    assert {n: t.raw.tobytes() for n, t in put_by(whole).items()} == {
        n: t.raw.tobytes() for n, t in put_by(ended).items()
    }


def test_mixed_settings_are_checked() -> None:
    with pytest.raises(InputError, match="Q3_K"):
        stage_mixed.Settings(types=("Q3_K",))
    with pytest.raises(InputError, match="time_of"):
        stage_mixed.Settings(time_of="Q9")


def test_a_budget_of_time_is_that_of_a_uniform_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"Q4_0": 1.0, "Q5_0": 1.3, "Q8_0": 2.0, "F16": 4.0}

    def fake(
        kernels: list[Kernel], row_counts: tuple[int, ...], *, working_bytes: int
    ) -> dict[int, dict[Kernel, float]]:
        assert working_bytes > 0
        return {row_counts[0]: {k: seconds[k.format] * k.num_outputs * k.num_inputs for k in kernels}}

    monkeypatch.setattr(stage_mixed, "time_kernels", fake)
    job = small_job(tmp_path)
    stage_mixed.run(job, stage_mixed.Settings(budget="decode", time_of="Q5_0", measured_windows=1, method="search"))
    put = put_by(job)
    weights = [name for group in layer_groups(job.checkpoint.graph()) for name in group.weights]
    total = sum(put[name].dequantize().size for name in weights)
    taken = sum(seconds[put[name].type.name] * put[name].dequantize().size for name in weights)
    assert total < taken <= 1.3 * total


def test_kernels_of_a_model_are_timed() -> None:
    kernels = [Kernel("Q4_0", 64, 64), Kernel("Q8_0", 64, 64), Kernel("INT8", 32, 64), Kernel("Q4_K", 32, 256)]
    found = time_kernels(kernels, (1, 4), num_threads=1)
    assert set(found) == {1, 4}
    for times in found.values():
        assert set(times) == set(kernels)
        assert all(0 < seconds < 10 for seconds in times.values())
        assert step_seconds(times, kernels[:2]) == pytest.approx(times[kernels[0]] + times[kernels[1]])
    assert time_kernels([], (1,)) == {1: {}}
    with pytest.raises(InputError, match="no kernels for Q9"):
        time_kernels([Kernel("Q9", 64, 64)])


def test_wide_weights_have_their_scales_searched(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    narrowest = min(shape[1] for shape in job.checkpoint.graph().weights.values() if len(shape) == 2)
    result = stage_quantize.run(job, Settings(widest=narrowest))
    shapes = job.checkpoint.graph().weights
    rounded = {each.part: each.why for each in result.decisions if each.what.startswith("Q4_0")}
    assert rounded
    widths = {part: shapes[f"{part.split('+')[0]}.weight"][1] for part in rounded}
    assert {part for part, why in rounded.items() if "too many for gptq" in why} == {
        part for part, width in widths.items() if width > narrowest
    }


def test_a_wide_head_has_its_scales_searched(tmp_path: Path) -> None:
    job = small_job(tmp_path, small_graph(is_tied=False))
    result = stage_quantize.run(job, Settings(widest=32, head_bits="4"))
    assert [each.what for each in result.decisions if each.part == "output"] == ["Q4_0 by search"]
