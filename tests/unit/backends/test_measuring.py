"""Measuring gives every figure that a prediction needs, whatever the figures are."""

from __future__ import annotations

import math

import pytest

from subsecond import _native
from subsecond.backends.native import measuring, timing_attention, timing_linears
from subsecond.backends.native.trial import Trial, WeightPool, typical
from subsecond.backends.native.weight_formats import MEASURED_FORMATS
from subsecond.backends.probe import VALUE_OPERATORS
from subsecond.backends.probe_store import parse_probe, probe_json

MB = 1 << 20


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (measuring, timing_linears, timing_attention):
        monkeypatch.setattr(module, "NUM_RUNS", 1)
    for module in (timing_linears, timing_attention):
        monkeypatch.setattr(module, "NUM_LONG_RUNS", 1)
    monkeypatch.setattr(measuring, "THREAD_BYTES", (MB, 2 * MB))
    # a busy machine must not cut the list short
    monkeypatch.setattr(measuring, "READ_LIMIT_S", 60.0)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_figure_is_measured(num_threads: int) -> None:
    probe = measuring.measure(num_threads=num_threads)
    assert parse_probe(probe_json(probe), "test") == probe
    assert probe.fingerprint == measuring.fingerprint(num_threads=num_threads)
    assert set(probe.linears) == set(MEASURED_FORMATS)
    assert set(probe.values) == set(VALUE_OPERATORS)
    assert {peak.isa for peak in probe.peaks} == set(_native.available_isas())
    assert {peak.num_threads for peak in probe.peaks} == {1, num_threads}
    assert all(peak.operations_s > 1e6 for peak in probe.peaks)
    sizes = [(rate.num_threads, rate.thread_bytes) for rate in probe.read_rates]
    assert sizes == [(threads, size) for threads in sorted({1, num_threads}) for size in (MB, 2 * MB)]
    heads = [(speed.head_dim, speed.group) for speed in probe.attention.speeds]
    assert heads == [(d, g) for d in timing_attention.HEAD_DIMS for g in timing_attention.GROUPS]
    assert 0 < probe.processor_share <= 1.01
    assert probe.activation_s.rows[0] == 1


def test_slow_kernels_are_measured_with_fewer_rows_and_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LINEARS_LIMIT_S", 0.0)
    monkeypatch.setattr(measuring, "ATTENTION_LIMIT_S", 0.0)
    monkeypatch.setattr(measuring, "MEASURED_FORMATS", ("Q4_0", "Q8_0"))
    probe = measuring.measure("scalar", num_threads=1)
    assert probe.fingerprint.isa == "scalar"
    assert all(speed.weight_s.rows == (1,) for speed in probe.linears.values())


def test_working_sets_stay_within_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "READ_LIMIT_S", 0.0)
    (rate,) = measuring.measure_read_rates(1, [MB, 4 * MB])
    assert (rate.num_threads, rate.thread_bytes) == (1, MB)
    monkeypatch.setattr(measuring, "READ_LIMIT_S", 60.0)
    monkeypatch.setattr(measuring, "MEMORY_SHARE", 1e-12)
    rates = measuring.measure_read_rates(2, [MB + 5, 4 * MB])
    assert [(rate.num_threads, rate.thread_bytes) for rate in rates] == [(1, MB), (2, MB)]


def test_the_extension_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match="1 to 1024 threads"):
        _native.measure_peaks(0)
    with pytest.raises(ValueError, match="1 to 1024 threads"):
        _native.measure_pool(1025)
    with pytest.raises(ValueError, match="less than a second"):
        _native.measure_peaks(1, math.nan)
    with pytest.raises(ValueError, match="ascending"):
        _native.measure_read_rates(1, [2 * MB, MB])
    with pytest.raises(ValueError, match="ascending"):
        _native.measure_read_rates(1, [])
    with pytest.raises(ValueError, match="multiple of 16 KiB"):
        _native.measure_read_rates(1, [MB + 1])
    with pytest.raises(ValueError, match="less than ten seconds"):
        _native.measure_processor_share(1, math.inf)


def test_weights_of_a_pool_follow_each_other_and_begin_again() -> None:
    pool = WeightPool(3 * _native.packed_size("Q8_0", 64, 64))
    places = [pool.matrix("Q8_0", 64, 64).data.ctypes.data for _ in range(4)]
    assert len(set(places[:3])) == 3
    assert places[3] == places[0]
    assert pool.matrix("F32", 16, 32).data[0] == 0x11


def test_a_trial_times_every_operator() -> None:
    trial = Trial(WeightPool(MB))
    trial.linear("y", trial.source("x", 64), "Q4_0", 32)
    seconds = trial.start("y", "", 1, 4).operator_seconds(2, 4)
    assert set(seconds) == {"x", "y", "selected rows"}
    assert all(0 <= value < 1 for value in seconds.values())


def test_the_typical_time_is_the_lower_quartile() -> None:
    assert typical([5.0, 1.0, 3.0, 2.0]) == 2.0
    assert typical([7.0]) == 7.0
