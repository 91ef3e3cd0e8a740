"""The numbers that monitoring reads: names that dashboards use, values that add up, and no waiting for the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import subsecond
from subsecond.serve.metrics import Histogram, ModelMetrics
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.wire_cases import until

CHAT: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "say a long text"}]}

# what public dashboards for vLLM draw
DASHBOARD_NAMES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:time_per_output_token_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
)


class Scrape:
    """The samples of one answer, by name and labels."""

    def __init__(self, client: httpx.Client) -> None:
        response = client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain; version=")
        self.samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) == 1, (name, labels, found)
        return float(found[0])

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == name]


@pytest.fixture(scope="module")
def counted() -> Iterator[LiveServer]:
    """A server that answered three requests and one for vectors, refused two, and lost a client."""
    with LiveServer() as live, live.client() as client:
        for _ in range(2):
            client.post("/v1/chat/completions", json=CHAT)
        client.post("/v1/chat/completions", json={**CHAT, "n": 2, "max_tokens": 3})
        client.post("/v1/embeddings", json={"model": "embedding", "input": ["ab", "cde"]})
        client.post("/v1/chat/completions", json={**CHAT, "model": "none"})
        client.get("/no/such/path")
        live.model.backend.hold_after = 2
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}):
            while live.model.backend.hold.is_set():
                pass
        until(lambda: live.app.context.metrics.of("scripted").num_ends["cancelled"] > 0)
        live.model.backend.hold.set()
        # the end of an answer is counted before the engine and the server have let go of it
        until(lambda: live.model.engine.stats().num_running == live.app.context.lifecycle.num_running == 0)
        yield live


@pytest.fixture
def scrape(counted: LiveServer) -> Scrape:
    with counted.client() as client:
        return Scrape(client)


def test_the_names_of_dashboards_are_there_with_their_label(scrape: Scrape) -> None:
    for name in DASHBOARD_NAMES:
        labels = scrape.labels(name)
        assert labels and all(each["model_name"] for each in labels), name
        assert {"model_name": "scripted", "engine": "0"}.items() <= labels[0].items(), name


def test_tokens_add_up(scrape: Scrape, counted: LiveServer) -> None:
    prompt_ids = counted.model.engine.requests[0].prompt_ids
    for name in ("subsecond_prompt_tokens_total", "vllm:prompt_tokens_total"):
        assert scrape.value(name, model_name="scripted") == 4 * len(prompt_ids)
    whole = len(counted.model.checkpoint.tokenizer.encode("a long text")) + 1
    cancelled = counted.app.context.metrics.of("scripted").num_completion_tokens - (2 * whole + 2 * 3)
    assert 1 <= cancelled <= 3
    for name in ("subsecond_completion_tokens_total", "vllm:generation_tokens_total"):
        assert scrape.value(name, model_name="scripted") == 2 * whole + 2 * 3 + cancelled
    queries, hits = (
        scrape.value(f"vllm:prefix_cache_{name}_total", model_name="scripted") for name in ("queries", "hits")
    )
    assert 0 < hits < queries
    assert hits == scrape.value("subsecond_prefix_cache_hits_total", model_name="scripted")
    assert scrape.value("subsecond_embedded_texts_total", model_name="embedding") == 2
    assert scrape.value("subsecond_embedded_tokens_total", model_name="embedding") == 5


def test_answers_are_counted_by_their_ends(scrape: Scrape) -> None:
    ours = {labels["finish_reason"]: labels for labels in scrape.labels("subsecond_answers_total")}
    assert {reason: scrape.value("subsecond_answers_total", **labels) for reason, labels in ours.items()} == {
        "stop": 2,
        "length": 2,
        "cancelled": 1,
    }
    foreign = {
        reason: scrape.value("vllm:request_success_total", model_name="scripted", finished_reason=reason)
        for reason in ("stop", "length", "abort")
    }
    assert foreign == {"stop": 2, "length": 2, "abort": 1}


def test_times_are_counted_once_a_request_and_once_a_token(scrape: Scrape) -> None:
    for name in (
        "vllm:time_to_first_token_seconds",
        "subsecond_ttft_seconds",
        "subsecond_request_seconds",
        "subsecond_queue_seconds",
        "subsecond_prefill_seconds",
        "subsecond_decode_seconds",
    ):
        assert scrape.value(f"{name}_count", model_name="scripted") == 4, name
        assert scrape.value(f"{name}_bucket", model_name="scripted", le="+Inf") == 4
        assert scrape.value(f"{name}_sum", model_name="scripted") >= 0
    assert scrape.value("subsecond_itl_seconds_count", model_name="scripted") >= 2 * 8
    assert scrape.value("subsecond_embedding_seconds_count", model_name="embedding") == 1


def test_nothing_is_left_running(scrape: Scrape) -> None:
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc"):
        assert scrape.value(f"vllm:{name}", model_name="scripted") == 0, name
    assert scrape.value("subsecond_http_requests_running") == 0


def test_responses_are_counted_by_route_and_status(scrape: Scrape) -> None:
    def count(path: str, status: str) -> float:
        return scrape.value("subsecond_http_responses_total", path=path, status=status)

    assert count("/v1/chat/completions", "200") == 4
    assert count("/v1/chat/completions", "404") == 1
    assert count("/v1/embeddings", "200") == 1
    assert count("other", "404") == 1
    assert not any("such" in labels["path"] for labels in scrape.labels("subsecond_http_responses_total"))


def test_what_computes_is_told(scrape: Scrape) -> None:
    info = {labels["model_name"]: labels for labels in scrape.labels("subsecond_model_info")}
    assert info["scripted"]["kernels"] == "scalar" and info["scripted"]["variant"] == "scripted/fp32/kv-fp32"
    assert info["embedding"]["artifact"] == "embedding.gguf"
    assert scrape.labels("subsecond_build_info") == [{"version": subsecond.__version__}]
    assert scrape.value("subsecond_model_bytes", model_name="scripted") == 100
    assert scrape.value("subsecond_engine_alive", model_name="scripted") == 1
    assert scrape.value("process_resident_memory_bytes") > 1e6


def test_a_scrape_waits_for_no_step(counted: LiveServer) -> None:
    backend = counted.model.backend
    with counted.client() as client:
        backend.hold_after = 2
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as stream:
            lines = stream.iter_lines()  # dropping the iterator would close the connection
            next(lines)
            give_up_s = time.monotonic() + 30
            while not (scrape := Scrape(client)).value("subsecond_step_running_seconds", model_name="scripted"):
                assert time.monotonic() < give_up_s, f"no step is held: {counted.model.engine.stats()}"
            assert scrape.value("vllm:num_requests_running", model_name="scripted") == 1
            assert 0 < scrape.value("vllm:kv_cache_usage_perc", model_name="scripted") < 1
            backend.hold.set()
            assert list(lines)


def test_buckets_are_cumulative_and_hold_their_bound() -> None:
    histogram = Histogram((1.0, 2.0, 5.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        histogram.add(value)
    histogram.add(3.0, times=2)
    assert histogram.buckets() == [("1", 2), ("2", 3), ("5", 5), ("+Inf", 6)]
    assert histogram.sum == 16.0


def test_a_gap_is_shared_by_the_tokens_behind_it() -> None:
    metrics = ModelMetrics()
    metrics.add_tokens(4, 0.1)
    metrics.add_tokens(0, 5.0)
    assert metrics.itl_s.buckets()[-1] == ("+Inf", 4) and metrics.itl_s.sum == pytest.approx(0.1)
    assert dict(metrics.itl_s.buckets())["0.03"] == 4
