"""Loads send what they should when they should, lose no failure, and notice what a target does not give back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from subsecond.core.errors import InputError
from subsecond.measure.arrivals import Arrivals, Closed, Open
from subsecond.measure.bench_rows import findings_of, row_of
from subsecond.measure.energy import EnergyMeter
from subsecond.measure.journal import Journal
from subsecond.measure.load import Sample, measure_load, run_load
from subsecond.measure.rounds import Cell, Rounds, sweep
from subsecond.measure.target import Trace
from subsecond.measure.workload import Ask, Workload
from tests.unit.measure.fake_target import FakeTarget

SMALL = Workload("small", 4, 3)
ASKS = [Ask((index,), 2) for index in range(6)]
CELL = Cell(SMALL, Closed(2), 6, 100)
TIMEOUT_S = 60.0

Measure = Callable[[FakeTarget], Sample]


@pytest.fixture
def meter(tmp_path: Path) -> EnergyMeter:
    return EnergyMeter(5.0, powercap=tmp_path, gpu_program="no-such-program")


@pytest.fixture
def measure(meter: EnergyMeter) -> Measure:
    def run(target: FakeTarget, arrivals: Arrivals = CELL.arrivals) -> Sample:
        return asyncio.run(measure_load(target, CELL.asks("0"), arrivals, meter, TIMEOUT_S))

    return run


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_clients_wait_for_their_answers(concurrency: int) -> None:
    target = FakeTarget()
    traces = asyncio.run(run_load(target, ASKS, Closed(concurrency), TIMEOUT_S))
    assert target.most_open == min(concurrency, len(ASKS))
    assert [trace.num_prompt_tokens for trace in traces] == [1] * 6
    assert sorted(target.asked) == [(ask.prompt_ids, 2) for ask in ASKS]


def test_requests_of_given_times_do_not_wait_for_each_other() -> None:
    target = FakeTarget(late=frozenset({0}))

    async def run() -> tuple[Trace, ...]:
        running = asyncio.create_task(run_load(target, ASKS[:3], Open((0.0, 0.05, 0.1)), TIMEOUT_S))
        while len(target.asked) < 3 or target.num_open > 1:
            await asyncio.sleep(0.001)
        target.release.set()
        return await running

    traces = asyncio.run(run())
    starts = [trace.start_s - traces[0].start_s for trace in traces]
    assert starts == pytest.approx([0.0, 0.05, 0.1])
    assert [trace.error for trace in traces] == [None] * 3
    assert traces[0].stamps_s[0] > traces[2].stamps_s[0]


def test_who_is_sent_late_has_waited_since_its_time() -> None:
    """A request that the program itself sends late counts from when it was due (no coordinated omission)."""

    class Blocking(FakeTarget):
        async def ask(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Trace:
            if not self.asked:
                time.sleep(0.2)
            return await super().ask(prompt_ids, num_new_tokens)

    late = asyncio.run(run_load(Blocking(), ASKS[:2], Open((0.0, 0.02)), TIMEOUT_S))[1]
    assert late.ttft_ms is not None and late.ttft_ms >= 180


def test_no_failure_is_lost_and_none_ends_the_others() -> None:
    target = FakeTarget(failures={1: InputError("no such token"), 3: RuntimeError("boom")}, late=frozenset({4}))
    # a busy machine may need a while for those that are answered at once
    traces = asyncio.run(run_load(target, ASKS, Closed(1), 2.0))
    errors = [trace.error for trace in traces]
    assert errors == [None, "InputError: no such token", None, "RuntimeError: boom", "not answered within 2 s", None]
    sample = Sample(1.0, traces, None, None, None, "none", None, None, 0, 0.0, 0)
    cell = Cell(SMALL, Closed(1), 6, 100)
    row = row_of(cell, "fake", [sample], {})
    assert row["num_failed"] == 3 and row["num_requests"] == 6
    assert {"error": "RuntimeError: boom", "count": 1} in row["errors"]
    assert findings_of(cell, "fake", [sample])[0]["text"] == "3 of 6 requests failed"


def test_a_load_whose_every_request_fails_has_a_row(measure: Measure) -> None:
    sample = measure(FakeTarget(failures={index: RuntimeError("down") for index in range(9)}))
    row = row_of(CELL, "fake", [sample], {"ttft_ms": 100.0})
    assert row["num_failed"] == 6 and row["ttft_ms"] is None and row["energy_j_per_token"] is None
    assert row["output_tokens_per_s"] is None and row["goal_share"] == 0.0


def test_a_leak_is_found_and_its_absence_too(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subsecond.measure.load.SETTLE_S", 0.1)
    assert findings_of(CELL, "fake", [measure(FakeTarget())]) == []
    leaking = FakeTarget(leak_blocks=2)
    found = findings_of(CELL, "fake", [measure(leaking)])
    assert [entry["kind"] for entry in found] == ["leak"]
    assert found[0]["num_blocks"] == 12 and "12 blocks were not given back" in found[0]["text"]


def test_samples_survive_the_journal(measure: Measure) -> None:
    sample = measure(FakeTarget(failures={2: RuntimeError("x")}))
    again = Sample.from_json(sample.to_json())
    assert again == Sample.from_json(again.to_json())
    assert row_of(CELL, "fake", [again], {}) == row_of(CELL, "fake", [sample], {})


def test_targets_take_turns_and_what_is_done_is_not_done_again(meter: EnergyMeter, tmp_path: Path) -> None:
    log: list[str] = []
    targets = [FakeTarget(name, log=log) for name in ("a", "b")]
    path = tmp_path / "journal.jsonl"
    done: list[int] = []
    rounds = Rounds(targets, Journal(path), meter, 2, 1, TIMEOUT_S, on_sample=lambda: done.append(1))
    cell = replace(CELL, num_requests=1)
    first = rounds.measure(cell)
    # a warm-up and a repeat each, then the second repeat in the other order
    assert log == ["a", "a", "b", "b", "b", "a"] and len(done) == 4
    assert [target.num_prepared for target in targets] == [1, 1]
    again = Rounds(targets, Journal(path), meter, 2, 1, TIMEOUT_S)
    assert again.num_done([cell]) == 4
    assert again.measure(cell) == first
    assert len(log) == 6


def test_repeats_ask_other_prompts_of_the_same_sizes() -> None:
    first, second = CELL.asks("0"), CELL.asks("1")
    assert [len(ask.prompt_ids) for ask in first] == [len(ask.prompt_ids) for ask in second] == [4] * 6
    assert first != second


def test_lengths_of_a_file_are_those_of_the_requests() -> None:
    cell = Cell(SMALL, Open((0.0, 1.0), lengths=((9, None), (None, 8))), 2, 100)
    assert [(len(ask.prompt_ids), ask.num_new_tokens) for ask in cell.asks("0")] == [(9, 3), (4, 8)]
    assert cell.output_tokens() == [3, 8] and cell.max_context_tokens() == 12


def test_a_sweep_ends_where_the_goal_breaks(meter: EnergyMeter, tmp_path: Path) -> None:
    """Of the two targets one becomes slow at the third level."""
    targets = [FakeTarget("good"), FakeTarget("bad", slow=frozenset(range(12, 99)), slow_s=100.0)]
    rounds = Rounds(targets, Journal(tmp_path / "journal.jsonl"), meter, 1, 0, TIMEOUT_S)
    cells = [(float(level), Cell(SMALL, Closed(level), 6, 100)) for level in (1, 2, 4, 8)]
    seen: list[tuple[str, str]] = []
    found = sweep(rounds, cells, {"ttft_ms": 60_000.0}, 0.9, lambda cell, s: seen.extend((cell.key, n) for n in s))
    assert [step.is_held for step in found["good"]] == [True] * 4
    assert [step.is_held for step in found["bad"]] == [True, True, False]
    assert len(seen) == 7
