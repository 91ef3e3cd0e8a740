"""The server's numbers as the text that monitoring reads, under our names and under those public dashboards use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from starlette.requests import Request
from starlette.responses import Response

import subsecond
from subsecond.engine.protocol import EngineStats
from subsecond.serve.answers import artifact_name, kernels_name
from subsecond.serve.context import ServerContext
from subsecond.serve.metrics import Histogram, ModelMetrics
from subsecond.serve.registry import ModelState
from subsecond.serve.routing import ApiRoute

Source = TypeVar("Source")
Value = TypeVar("Value")
_LABELS = ("model_name", "engine")  # "engine" tells several of one server apart elsewhere; here there is one a model
_ENGINE = "0"
# how public dashboards call the ends of answers
_FOREIGN_ENDS = {"stop": "stop", "tool_calls": "stop", "length": "length", "deadline": "length", "cancelled": "abort"}


class _Row(NamedTuple, Generic[Source, Value]):
    """One number of a model: its names, ours first, what it is, and where it comes from."""

    names: tuple[str, ...]
    help: str
    of: Callable[[Source], Value]


_HISTOGRAMS: tuple[_Row[ModelMetrics, Histogram], ...] = (
    _Row(("subsecond_ttft_seconds", "vllm:time_to_first_token_seconds"), "Request to first token", lambda m: m.ttft_s),
    _Row(
        ("subsecond_itl_seconds", "vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        "From one token to the next",
        lambda m: m.itl_s,
    ),
    _Row(
        ("subsecond_tpot_seconds", "vllm:request_time_per_output_token_seconds"),
        "Mean time of an answer's tokens after the first",
        lambda m: m.tpot_s,
    ),
    _Row(
        ("subsecond_request_seconds", "vllm:e2e_request_latency_seconds"),
        "Request to last token",
        lambda m: m.request_s,
    ),
    _Row(
        ("subsecond_queue_seconds", "vllm:request_queue_time_seconds"),
        "Request until the engine begins with it",
        lambda m: m.queue_s,
    ),
    _Row(
        ("subsecond_prefill_seconds", "vllm:request_prefill_time_seconds"),
        "From then to the first token",
        lambda m: m.prefill_s,
    ),
    _Row(
        ("subsecond_decode_seconds", "vllm:request_decode_time_seconds"),
        "First token to last token",
        lambda m: m.decode_s,
    ),
    _Row(
        ("subsecond_request_prompt_tokens", "vllm:request_prompt_tokens"),
        "Tokens of a request's prompt",
        lambda m: m.prompt_tokens,
    ),
    _Row(
        ("subsecond_request_completion_tokens", "vllm:request_generation_tokens"),
        "Tokens of a request's answers",
        lambda m: m.completion_tokens,
    ),
    _Row(("subsecond_embedding_seconds",), "Request for embeddings to its answer", lambda m: m.embedding_s),
)
_COUNTS: tuple[_Row[ModelMetrics, float], ...] = (
    _Row(
        ("subsecond_prompt_tokens", "vllm:prompt_tokens"),
        "Tokens of prompts, of requests that have ended",
        lambda m: m.num_prompt_tokens,
    ),
    _Row(
        ("subsecond_completion_tokens", "vllm:generation_tokens"),
        "Tokens of answers, of requests that have ended",
        lambda m: m.num_completion_tokens,
    ),
    _Row(
        ("subsecond_cached_tokens",),
        "Those tokens of prompts that the prefix cache had",
        lambda m: m.num_cached_tokens,
    ),
    _Row(("subsecond_embedded_texts",), "Texts that became vectors", lambda m: m.num_texts),
    _Row(("subsecond_embedded_tokens",), "Their tokens", lambda m: m.num_text_tokens),
)
_GAUGES: tuple[_Row[EngineStats, float], ...] = (
    _Row(
        ("subsecond_requests_running", "vllm:num_requests_running"),
        "Samples that the engine computes",
        lambda s: s.num_running,
    ),
    _Row(
        ("subsecond_requests_waiting", "vllm:num_requests_waiting"),
        "Samples that wait for room in it",
        lambda s: s.num_waiting,
    ),
    _Row(
        ("subsecond_kv_usage_ratio", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "Key/value blocks in use, from 0 to 1",
        lambda s: 1 - s.num_free_blocks / s.num_blocks if s.num_blocks else 0.0,
    ),
    _Row(("subsecond_engine_alive",), "Whether the engine takes requests", lambda s: float(s.is_alive)),
    _Row(
        ("subsecond_step_running_seconds",),
        "How long the step in progress takes so far",
        lambda s: (s.step_ms or 0) / 1e3,
    ),
)
_SUMS: tuple[_Row[EngineStats, float], ...] = (
    _Row(
        ("subsecond_prefix_cache_queries", "vllm:prefix_cache_queries"),
        "Tokens of prompts that were looked for in the prefix cache",
        lambda s: s.num_prompt_tokens,
    ),
    _Row(
        ("subsecond_prefix_cache_hits", "vllm:prefix_cache_hits"),
        "Tokens of prompts that were found there",
        lambda s: s.num_cached_tokens,
    ),
    _Row(
        ("subsecond_preemptions", "vllm:num_preemptions"),
        "Samples put back for want of key/value blocks",
        lambda s: s.num_preemptions,
    ),
    _Row(("subsecond_steps",), "Steps computed", lambda s: s.num_steps),
    _Row(("subsecond_rows",), "Rows computed", lambda s: s.num_rows),
    _Row(("subsecond_failed_steps",), "Steps that failed", lambda s: s.num_failed_steps),
)


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the route that monitoring asks."""
    registry = CollectorRegistry()
    registry.register(_ServerCollector(context))
    ProcessCollector(registry=registry)

    async def metrics(_: Request) -> Response:
        # writing thousands of lines takes milliseconds, in which streams would stand still
        content = await asyncio.to_thread(generate_latest, registry)
        return Response(content, headers={"content-type": CONTENT_TYPE_LATEST})

    return [ApiRoute("GET", "/metrics", metrics, summary="Counts and times, as Prometheus reads them")]


class _ServerCollector:
    """Makes the metrics of one server when they are asked for; no engine is waited for."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand, so that registering asks for no numbers."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        models = dict(self._context.metrics.models)  # other threads go on adding
        for total in _COUNTS:
            values = {model: total.of(found) for model, found in models.items()}
            yield from (_counter(name, total.help, values) for name in total.names)
        for row in _HISTOGRAMS:
            found_in = {model: row.of(found) for model, found in models.items()}
            yield from (_histogram(name, row.help, found_in) for name in row.names)
        yield from self._ends()
        states = self._context.registry.states()
        stats = {
            state.spec.name: state.served.loaded.model.engine.stats()
            for state in states
            if state.served is not None and state.served.loaded.model is not None
        }
        for gauge in _GAUGES:
            values = {model: gauge.of(found) for model, found in stats.items()}
            yield from (_gauge(name, gauge.help, values) for name in gauge.names)
        for count in _SUMS:
            values = {model: count.of(found) for model, found in stats.items()}
            yield from (_counter(name, count.help, values) for name in count.names)
        yield from self._models(states)
        yield from self._server()

    def _ends(self) -> Iterator[Metric]:
        ours = CounterMetricFamily(
            "subsecond_answers", "Answers by how they ended", labels=("model_name", "finish_reason")
        )
        foreign = CounterMetricFamily(
            "vllm:request_success", "Answers by how they ended", labels=(*_LABELS, "finished_reason")
        )
        for model, found in dict(self._context.metrics.models).items():
            totals = dict.fromkeys(_FOREIGN_ENDS.values(), 0)
            for reason, count in list(found.num_ends.items()):
                ours.add_metric((model, reason), count)
                totals[_FOREIGN_ENDS.get(reason, "error")] = totals.get(_FOREIGN_ENDS.get(reason, "error"), 0) + count
            for reason, count in totals.items():
                foreign.add_metric((model, _ENGINE, reason), count)
        yield ours
        yield foreign

    def _models(self, states: tuple[ModelState, ...]) -> Iterator[Metric]:
        info = InfoMetricFamily("subsecond_model", "What computes each loaded model", labels=("model_name",))
        for state in states:
            loaded = state.served.loaded if state.served is not None else None
            model = loaded.model or loaded.embedder if loaded is not None else None
            if model is not None:
                told = {
                    "variant": model.backend.variant,
                    "kernels": kernels_name(model),
                    "artifact": artifact_name(model),
                }
                info.add_metric((state.spec.name,), told)
        yield info
        yield _gauge(
            "subsecond_model_bytes",
            "Bytes of weights and key/value blocks of a loaded model",
            {state.spec.name: state.num_bytes for state in states},
        )
        yield _gauge(
            "subsecond_model_leases",
            "Requests that use a model or wait for it",
            {state.spec.name: state.num_leases for state in states},
        )

    def _server(self) -> Iterator[Metric]:
        context = self._context
        yield InfoMetricFamily("subsecond_build", "This version", value={"version": subsecond.__version__})
        yield GaugeMetricFamily(
            "subsecond_http_requests_running", "Requests in progress", value=context.limits.num_requests
        )
        responses = CounterMetricFamily(
            "subsecond_http_responses", "Responses by route and status", labels=("path", "status")
        )
        for (path, status), count in list(context.metrics.num_responses.items()):
            responses.add_metric((path, str(status)), count)
        yield responses


def _counter(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=_LABELS)
    for model, value in values.items():
        family.add_metric((model, _ENGINE), value)
    return family


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=_LABELS)
    for model, value in values.items():
        family.add_metric((model, _ENGINE), value)
    return family


def _histogram(name: str, text: str, values: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=_LABELS)
    for model, value in values.items():
        if value.sum:  # a model has either answers or vectors, and most buckets of the other would be told for nothing
            family.add_metric((model, _ENGINE), value.buckets(), value.sum)
    return family
