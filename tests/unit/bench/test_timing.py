"""What the programs of all engines share: prompts, reports, and the steps that are stamped."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench.timing import Timing, Workload, stamp_rounds

TIMING = Timing(1.5, 250.0, (100.0, 300.0), 512, 3, 8, 1000, "engine 1.2", "some kernels")


def test_speeds_are_of_all_sequences_together() -> None:
    assert TIMING.prompt_tokens_per_s == pytest.approx(8 * 512 / 0.25)
    assert TIMING.decode_tokens_per_s == pytest.approx(8 * 2 / 0.4)


def test_report_is_the_last_line() -> None:
    text = "loading ...\n" + json.dumps(asdict(TIMING) | {"token_ids": [1]}) + "\n"
    assert Timing.from_json(text) == TIMING


@pytest.mark.parametrize("text", ["", "loading ...", "[]", '{"load_ms": 1}'])
def test_other_output_is_no_report(text: str) -> None:
    with pytest.raises(ValueError):
        Timing.from_json(text)


def test_prompts_begin_differently() -> None:
    workload = Workload(128, 17, 32)
    prompts = [*workload.prompts(), *workload.prompts(seed=1)]
    assert all(len(prompt) == 128 for prompt in prompts)
    assert len({prompt[0] for prompt in prompts}) == 64
    assert all(1000 <= token_id < 17000 for prompt in prompts for token_id in prompt)


@pytest.mark.parametrize(
    ("workload", "warmup"),
    [
        (Workload(2048, 2), Workload(2048, 2)),
        (Workload(128, 65, 1), Workload(128, 5, 1)),
        (Workload(128, 17, 32), Workload(4, 5, 32)),
        (Workload(1, 9, 32), Workload(1, 5, 32)),
    ],
)
def test_warmup_has_as_many_rows_and_sequences(workload: Workload, warmup: Workload) -> None:
    assert workload.warmup() == warmup


def test_round_is_full_when_the_slowest_sequence_has_its_token() -> None:
    counts = iter([[1, 0], [2, 0], [2, 1], [3, 3], [4, 4]])
    stamps = stamp_rounds(lambda: next(counts), 3)
    assert len(stamps) == 3
    assert stamps[1] == stamps[2]
    assert stamps[0] <= stamps[1]
    assert next(counts) == [4, 4]
