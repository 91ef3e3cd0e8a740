"""What comparisons of servers compute: loads, percentiles, samples, tables; nothing is served."""

from __future__ import annotations

import json
import math
import random

import pytest

from bench.serving.client import Answer
from bench.serving.commands import Capacity
from bench.serving.comparison import Outcome
from bench.serving.loads import LOADS, completion_body, num_requests, prompts_of_streams, random_ids
from bench.serving.long_prompt import Disturbance, Window, capacity_beside, gaps_within
from bench.serving.percentiles import area_standard_error, area_under_curve, percentile
from bench.serving.report import json_of, text_of
from bench.serving.samples import Costs, Sample, sample_of
from bench.serving.servers import check_name
from bench.tenant_timing import Probes, labels


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3.0], 0.95, 3), ([4, 1, 3, 2], 0, 1), ([4, 1, 3, 2], 1, 4), ([4, 1, 3, 2], 0.5, 2.5), (range(101), 0.95, 95)],
)
def test_percentiles(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == pytest.approx(expected)


def test_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 0.5))
    with pytest.raises(ValueError, match="95"):
        percentile([1], 95)


def test_area_under_curve_counts_pairs() -> None:
    assert area_under_curve([3, 4], [1, 2]) == 1
    assert area_under_curve([1, 2], [3, 4]) == 0
    assert area_under_curve([1, 1], [1]) == 0.5
    assert area_under_curve([2, 5], [1, 2, 3, 2]) == pytest.approx((1 + 0.5 + 0.5 + 4) / 8)
    with pytest.raises(ValueError, match="at least one"):
        area_under_curve([], [1])


def test_equal_distributions_stay_within_the_standard_error() -> None:
    rng = random.Random(0)
    areas = [area_under_curve([rng.random() for _ in range(50)], [rng.random() for _ in range(50)]) for _ in range(200)]
    spread = math.sqrt(sum((area - 0.5) ** 2 for area in areas) / len(areas))
    assert spread == pytest.approx(area_standard_error(50, 50), rel=0.2)


def test_prompts_are_the_same_for_all_servers_and_others_in_every_round() -> None:
    short = LOADS["short"]
    first = prompts_of_streams(short, 8, "round 0")
    assert first == prompts_of_streams(short, 8, "round 0")
    assert [len(stream) for stream in first] == [2] * 8
    found = [
        prompt for turn in range(3) for stream in prompts_of_streams(short, 8, f"round {turn}") for prompt in stream
    ]
    found += [prompt for stream in prompts_of_streams(short, 1, "round 0") for prompt in stream]
    assert len({prompt[:4] for prompt in found}) == 3 * 16 + 4
    assert all(len(prompt) == 128 and min(prompt) >= 1000 and max(prompt) < 17000 for prompt in found)


def test_only_the_known_beginning_is_shared() -> None:
    known = [LOADS["shared"].prompts(4, seed) for seed in ("a", "b")]
    fresh = [LOADS["shared-fresh"].prompts(4, seed) for seed in ("a", "b")]
    assert len({prompt[:768] for prompts in known for prompt in prompts}) == 1
    assert [len({prompt[:768] for prompt in prompts}) for prompts in fresh] == [1, 1]
    assert fresh[0][0][:768] != fresh[1][0][:768]
    assert len({prompt[768:] for prompts in (*known, *fresh) for prompt in prompts}) == 16
    assert {len(prompt) for prompts in (*known, *fresh) for prompt in prompts} == {1024}


def test_few_streams_make_more_requests() -> None:
    assert [num_requests(count) for count in (1, 2, 8, 32)] == [4, 2, 2, 2]


def test_random_ids_never_change() -> None:
    assert random_ids(3, "seed") == (3211, 4787, 14840)


def test_body_asks_for_exactly_that_many_tokens() -> None:
    body = json.loads(completion_body("m", (1, 2), 7))
    assert (body["prompt"], body["max_tokens"], body["ignore_eos"], body["stream"]) == ([1, 2], 7, True, True)


def test_engines_that_share_their_memory_need_no_slots() -> None:
    assert Capacity(2, 32, 1088).all_slots_tokens == Capacity(2, 32, 1088).shared_tokens == 32 * 1280
    assert Capacity(2, 32, 1279).all_slots_tokens == 32 * 1280  # one token to spare
    beside = capacity_beside(31, 4096, 2)
    assert beside.num_streams == 32
    assert beside.shared_tokens < beside.all_slots_tokens / 3


@pytest.mark.parametrize("name", ["subsecond", "subsecond:int8", "subsecond:int8-engine", "llama.cpp", "openvino:int4"])
def test_servers_have_the_names_of_rows(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["vllm", "llama.cpp-engine", "subsecond:int3", "ollama"])
def test_other_servers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"are .*subsecond|are .*int8"):
        check_name(name)


def answer_of(
    *stamps_s: float, start_s: float = 0.0, num_new_tokens: int | None = None, cached: int | None = 0
) -> Answer:
    count = len(stamps_s) if num_new_tokens is None else num_new_tokens
    return Answer(start_s, stamps_s[-1], list(stamps_s), 10, count, cached, "length")


def test_sample_puts_streams_together() -> None:
    streams = [
        [answer_of(1.0, 1.5), answer_of(2.5, 3.5, start_s=2.0)],
        [answer_of(2.0, 4.0, num_new_tokens=6, cached=5)],
    ]
    sample = sample_of(streams, Costs(3.5, 0.25, 0.0))
    assert (sample.num_streams, sample.num_requests, sample.num_prompt_tokens, sample.num_new_tokens) == (2, 3, 30, 10)
    assert (sample.num_events, sample.num_cached_tokens, sample.wall_s, sample.tokens_per_s) == (6, 5, 4.0, 2.5)
    assert sample.ttft_ms == (1000.0, 500.0, 2000.0)
    assert (sample.itl_p50_ms, sample.itl_max_ms) == (1000.0, 2000.0)
    assert Sample.from_json(json.loads(json.dumps(sample.as_json()))) == sample


def test_unknown_cache_use_stays_unknown() -> None:
    assert sample_of([[answer_of(1.0), answer_of(1.0, cached=None)]], Costs(0, 0, 0)).num_cached_tokens is None


def sample(tokens_per_s: float, ttft_ms: float, idle_cpu_share: float = 0.0) -> Sample:
    return Sample(8, 1, 10, 100, 100, 0, 100 / tokens_per_s, (ttft_ms,), 1, 2, 3, 4, 5, idle_cpu_share)


def test_report_compares_ours_with_each_peer_and_with_its_engine() -> None:
    outcome = Outcome()
    outcome.samples["short", 8] = {
        "subsecond": [sample(90, 10), sample(95, 20), sample(100, 30)],
        "subsecond-engine": [sample(100, 15)],
        "llama.cpp": [sample(50, 80, idle_cpu_share=1.9)],
        "openvino": [],
    }
    outcome.failures["openvino"] = "Traceback\nno such model"
    outcome.peak_rss_bytes["subsecond"] = 1_000_000_000
    text = text_of(outcome)
    assert "95 (90-100)" in text
    assert "subsecond / llama.cpp: 1.90x output tok/s, 0.25x TTFT p95" in text
    assert "subsecond: HTTP costs 5.0% of the engine's output tok/s" in text
    assert "openvino: no such model" in text
    assert "subsecond: 1000 MB at its peak" in text
    assert "llama.cpp: keeps 1.90 processors busy after short, 8 streams" in text
    assert "engine / " not in text
    found = json.loads(json.dumps(json_of(outcome)))
    assert len(found["samples"]["short"]["8"]["subsecond"]) == 3


def test_gaps_count_when_they_touch_the_window() -> None:
    answers = [answer_of(1.0, 2.0, 3.0, 5.0, 6.0, 7.0), answer_of(4.25, 4.5)]
    assert gaps_within(answers, Window(3.5, 5.5)) == [2000.0, 1000.0, 250.0]


def test_disturbance_is_told_by_ratios() -> None:
    found = Disturbance(2, [1.0] * 100, [3.0] * 10, [100.0, 200.0, 110.0], [220.0]).as_json()
    assert (found["itl_p99_ratio"], found["ttft_ratio"]) == (3.0, 2.0)
    assert "2 streams: ITL p99 1.0 ms alone, 3.0 ms" in Disturbance(2, [1.0], [3.0], [1.0], [2.0]).line()


def test_probes_have_as_many_hits_as_misses_in_no_order() -> None:
    found = labels(50, "seed")
    assert sum(found) == 50
    assert len(found) == 100
    assert found == labels(50, "seed") != labels(50, "other")


def test_misses_that_take_longer_are_told_apart() -> None:
    found = Probes([10.0, 11.0], [20.0, 22.0], 64).as_json()
    assert (found["auc"], found["speed_up"], found["num_cached_tokens"]) == (1.0, 2.0, 64)
