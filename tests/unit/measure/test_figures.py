"""Figures of rows agree with what can be counted by hand, in our words and in those of vLLM."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from subsecond.core.errors import InputError
from subsecond.measure import figures
from subsecond.measure.arrivals import Closed
from subsecond.measure.bench_rows import row_of, vllm_result, warnings_of
from subsecond.measure.energy import EnergyMeter, processor_counters
from subsecond.measure.load import Sample
from subsecond.measure.process_reading import cpu_seconds, machine_busy_seconds, memory_bytes, reset_peak
from subsecond.measure.rounds import Cell
from subsecond.measure.target import Trace
from subsecond.measure.workload import Workload


def trace(start_s: float, ttft_s: float, tpot_s: float, num_new: int = 5, num_prompt: int = 100) -> Trace:
    stamps = [start_s + ttft_s + index * tpot_s for index in range(num_new)]
    return Trace(start_s, stamps, num_prompt, num_new, 0)


def sample(traces: list[Trace], duration_s: float = 2.0, energy_j: float | None = 10.0) -> Sample:
    return Sample(duration_s, tuple(traces), 1.0, 0.1, energy_j, "a meter", 30, 40, 0, 0.0, 0)


CELL = Cell(Workload("small", 100, 5), Closed(1), 2, 1000)
SAMPLES = [
    sample([trace(0.0, 0.1, 0.01), trace(1.0, 0.2, 0.02)]),
    sample([trace(0.0, 0.1, 0.01), trace(1.0, 0.1, 0.01)]),
    sample([trace(0.0, 0.1, 0.01), trace(1.0, 0.9, 0.01)]),
]


def test_latencies() -> None:
    found = figures.latencies(SAMPLES)
    ttft = found["ttft_ms"]
    assert ttft is not None
    assert ttft["repeat_medians"] == [150.0, 100.0, 500.0]
    assert ttft["median"] == 150.0 and (ttft["min"], ttft["max"]) == (100.0, 900.0)
    assert ttft["spread"] == pytest.approx(400 / 150, rel=1e-4)
    assert ttft["mean"] == 150.0
    # of the values 100 x 4, 200, 900: 90 % lie half-way between the last two
    assert ttft["p90"] == pytest.approx(550.0)
    tpot, e2e, itl = found["tpot_ms"], found["e2e_ms"], found["itl_ms"]
    assert tpot is not None and e2e is not None and itl is not None
    assert tpot["median"] == pytest.approx(10.0) and tpot["max"] == pytest.approx(20.0)
    assert e2e["max"] == pytest.approx(940.0)
    assert itl["median"] == pytest.approx(10.0) and itl["p99"] == pytest.approx(20.0)


def test_rates_and_energy() -> None:
    row = row_of(CELL, "engine", SAMPLES, {})
    assert row["output_tokens_per_s"] == 5.0 and row["requests_per_s"] == 1.0
    assert row["total_tokens_per_s"] == 105.0
    assert row["decode_tokens_per_s"] == pytest.approx(100.0)
    assert row["prefill_tokens_per_s"] == pytest.approx(750.0)  # the repeats have 750, 1000 and 555.6
    assert row["energy_j_per_token"] == 1.0 and row["energy_method"] == "a meter"
    assert row["peak_memory_bytes"] == 40 and row["prompt_tokens"] == 100 and row["output_tokens"] == 5


def test_cached_tokens_are_not_counted_as_computed() -> None:
    cached = trace(0.0, 0.1, 0.01)
    cached.num_cached_tokens = 90
    assert row_of(CELL, "engine", [sample([cached, cached])], {})["prefill_tokens_per_s"] == pytest.approx(100.0)


def test_goodput_counts_what_meets_every_bound() -> None:
    goal = figures.parse_goal("ttft_ms=150, tpot_ms=15")
    rate, share = figures.goodput(SAMPLES, goal)
    assert share == pytest.approx(4 / 6, abs=1e-5) and rate == 0.5
    failed = trace(0.0, 0.1, 0.01)
    failed.error = "no"
    assert not figures.meets(failed, goal)
    assert not figures.meets(trace(0.0, 0.1, 0.01), figures.parse_goal("itl_ms=9"))


@pytest.mark.parametrize("text", ["", "ttft=5", "ttft_ms", "ttft_ms=-1", "ttft_ms=x", "ttft_ms=1,ttft_ms=2"])
def test_what_is_no_goal_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no goal"):
        figures.parse_goal(text)


def test_outliers_are_named() -> None:
    num, listed = figures.outliers(SAMPLES)
    assert num == 1
    assert listed[0] == {"figure": "ttft_ms", "repeat": 2, "request": 1, "value": 900.0, "median": 100.0}


def test_repeats_that_disagree_are_told_and_others_are_not() -> None:
    row = row_of(CELL, "engine", SAMPLES, {})
    assert "the medians of the repeats differ by 267% in ttft_ms" in row["noise"]
    assert any("too noisy" in text for text in warnings_of(row))
    quiet = row_of(CELL, "engine", [SAMPLES[1], SAMPLES[1]], {})
    assert quiet["noise"] is None and warnings_of(quiet) == []


def test_answers_that_are_short_or_come_in_lumps_are_told() -> None:
    short = Trace(0.0, [0.1, 0.2], 100, 4, None)
    row = row_of(CELL, "url", [sample([short, short])], {})
    assert row["num_short"] == 2 and row["tokens_per_event"] == 2.0
    texts = " ".join(warnings_of(row))
    assert "2 answers were shorter" in texts and "2.00 tokens came in one event" in texts


def test_the_words_of_vllm() -> None:
    row = row_of(CELL, "engine", SAMPLES, {"ttft_ms": 150.0})
    result = vllm_result(row, SAMPLES, "model.gguf", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert result["date"] == "20260102-030405"
    assert result["completed"] == result["num_prompts"] == 6 and result["failed"] == 0
    assert result["duration"] == 6.0 and result["total_input_tokens"] == 600 and result["total_output_tokens"] == 30
    assert result["request_throughput"] == 1.0 and result["output_throughput"] == 5.0
    assert result["total_token_throughput"] == 105.0 and result["request_rate"] == "inf"
    assert result["max_concurrency"] == 1 and result["backend"] == "engine" and result["model_id"] == "model.gguf"
    assert result["request_goodput"] == row["goodput_requests_per_s"]
    assert result["median_ttft_ms"] == pytest.approx(100.0) and result["mean_ttft_ms"] == pytest.approx(250.0)
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert {f"{key}_{name}_ms" for key in ("mean", "median", "std", "p99")} <= set(result)


def counter(root: Path, place: str, name: str, microjoules: int, most: int = 1000_000) -> Path:
    folder = root / place
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_energy_is_that_of_packages_and_memory(tmp_path: Path) -> None:
    package = counter(tmp_path, "intel-rapl:0", "package-0", 900_000)
    memory = counter(tmp_path, "intel-rapl:0:1", "dram", 100_000)
    core = counter(tmp_path, "intel-rapl:0:0", "core", 0)
    platform = counter(tmp_path, "intel-rapl:1", "psys", 0)
    assert len(processor_counters(tmp_path)) == 2
    meter = EnergyMeter(5.0, powercap=tmp_path, gpu_program="no-such-program")
    meter.start()
    package.write_text("200000\n")  # beyond its range, so it began anew
    memory.write_text("150000\n")
    core.write_text("500000\n")
    platform.write_text("900000\n")
    energy = meter.stop(1.0)
    assert energy.joules == pytest.approx(0.35) and energy.method == "RAPL of the whole machine"


def test_an_estimate_says_so_and_nothing_is_invented(tmp_path: Path) -> None:
    meter = EnergyMeter(4.0, powercap=tmp_path, gpu_program="no-such-program")
    meter.start()
    energy = meter.stop(2.5)
    assert energy.joules == 10.0
    assert energy.method.startswith("estimate: ") and "4 W" in energy.method and "--watts-per-core" in energy.method
    meter.start()
    assert meter.stop(None).joules is None
    meter.start()
    assert meter.stop(2.5, is_local=False).method == "none: the server runs on another machine"


def test_graphics_cards_are_added(tmp_path: Path) -> None:
    program = tmp_path / "smi"
    program.write_text("#!/bin/sh\nprintf '30.5\\n9.5\\n'\n")
    program.chmod(0o755)
    counter(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(5.0, powercap=tmp_path, gpu_program=str(program))
    meter.start()
    energy = meter.stop(1.0)
    assert energy.joules is not None and energy.joules > 0
    assert "nvidia-smi" in energy.method and "RAPL" in energy.method


def test_the_kernel_tells_of_processes(tmp_path: Path) -> None:
    import os

    resident, peak = memory_bytes(os.getpid())
    assert resident is not None and peak is not None and peak >= resident // 2 > 0
    assert (cpu_seconds(os.getpid()) or 0) > 0 and (machine_busy_seconds() or 0) > 0
    assert memory_bytes(1, tmp_path) == (None, None) and cpu_seconds(1, tmp_path) is None
    assert machine_busy_seconds(tmp_path) is None and not reset_peak(1, tmp_path)
