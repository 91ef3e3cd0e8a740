"""What the server counts and times, as plain numbers that cost little to add to; knows no format they are told in."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from subsecond.engine.stream import TokenStream

# from a fast token to a long answer, with more places where service levels are set
MILLISECONDS = (1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750)
SECONDS = (*(ms / 1e3 for ms in MILLISECONDS), 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120, 300, 600)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


class Histogram:
    """How many values fell at or below each bound, and their sum. Added to on one thread, read on any."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Note a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper bound, values up to it), the last bound being "+Inf"."""
        names = [f"{bound:g}" for bound in self.bounds] + ["+Inf"]
        total = 0
        found: list[tuple[str, float]] = []
        for name, count in zip(names, self.counts, strict=True):
            total += count
            found.append((name, total))
        return found


class ModelMetrics:
    """Counts and times of one model's answers, kept while the model comes and goes."""

    def __init__(self) -> None:
        self.ttft_s = Histogram()
        self.itl_s = Histogram()
        self.tpot_s = Histogram()
        self.request_s = Histogram()
        self.queue_s = Histogram()
        self.prefill_s = Histogram()
        self.decode_s = Histogram()
        self.prompt_tokens = Histogram(TOKENS)
        self.completion_tokens = Histogram(TOKENS)
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_completion_tokens = 0
        self.num_ends: Counter[str] = Counter()
        self.num_texts = 0
        self.num_text_tokens = 0
        self.embedding_s = Histogram()

    def add_tokens(self, num_tokens: int, gap_s: float) -> None:
        """Note tokens of one sample that arrived together, `gap_s` after the ones before them."""
        if num_tokens:
            self.itl_s.add(gap_s / num_tokens, num_tokens)

    def add_answer(self, streams: tuple[TokenStream, ...], end_reasons: tuple[str, ...]) -> None:
        """Note a request that has ended: the streams of its samples and why each ended, as its client was told."""
        self.num_ends.update(end_reasons)
        num_tokens = sum(stream.num_tokens for stream in streams)
        self.num_prompt_tokens += streams[0].num_prompt_tokens
        self.num_cached_tokens += max(stream.cached_tokens for stream in streams)
        self.num_completion_tokens += num_tokens
        self.prompt_tokens.add(streams[0].num_prompt_tokens)
        self.completion_tokens.add(num_tokens)
        first = streams[0]
        for histogram, value_ms in (
            (self.ttft_s, first.ttft_ms),
            (self.queue_s, first.queue_ms),
            (self.prefill_s, first.prefill_ms),
            (self.decode_s, _latest(stream.decode_ms for stream in streams)),
            (self.request_s, _latest(stream.total_ms for stream in streams)),
        ):
            if value_ms is not None:
                histogram.add(value_ms / 1e3)
        for stream in streams:
            if (tpot_ms := stream.tpot_ms) is not None:
                self.tpot_s.add(tpot_ms / 1e3)

    def add_texts(self, num_texts: int, num_tokens: int, total_s: float) -> None:
        """Note a request for embeddings that was answered."""
        self.num_texts += num_texts
        self.num_text_tokens += num_tokens
        self.embedding_s.add(total_s)


class Metrics:
    """All numbers of a server. `num_responses` has them by the path of the route and the status."""

    def __init__(self) -> None:
        self.models: dict[str, ModelMetrics] = {}
        self.num_responses: Counter[tuple[str, int]] = Counter()

    def of(self, name: str) -> ModelMetrics:
        """Return the numbers of a model."""
        return self.models.setdefault(name, ModelMetrics())


def _latest(values_ms: Iterable[float | None]) -> float | None:
    return max((value for value in values_ms if value is not None), default=None)
