"""Where the time of one request goes, part by part, measured through the engine; predicts nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult
from subsecond.backends.protocol import Backend
from subsecond.engine.local import LocalEngine
from subsecond.engine.request import Request, SamplingParams
from subsecond.models.detokenizer import ByteTokens, StreamingDetokenizer

NUM_RUNS = 3  # the one with the median total is reported


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """Milliseconds of one request on an idle engine without a prefix cache; all parts but `total_ms` add up to it.

    tokenize_ms    the prompt to token ids, chat template included
    queue_ms       from the submission until its first step began
    prefill_ms     running the model over the prompt
    decode_ms      running the model for every token after the first
    sample_ms      choosing all tokens from their logits
    detokenize_ms  token ids to text, once all are there
    other_ms       the engine between steps, and the threads that wake each other
    """

    num_prompt_tokens: int
    num_new_tokens: int
    tokenize_ms: float
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    sample_ms: float
    detokenize_ms: float
    other_ms: float
    total_ms: float
    ttft_ms: float
    tpot_ms: float | None

    def to_json(self) -> dict[str, object]:
        """The fields by name, as JSON holds them."""
        return asdict(self)


class _TimedBackend:
    """A backend that notes how long steps and draws take; implements `backends.protocol.Backend`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.vocab_size, self.block_tokens = backend.vocab_size, backend.block_tokens
        self.num_blocks, self.max_rows, self.variant = backend.num_blocks, backend.max_rows, backend.variant
        self.forward_s: list[tuple[float, bool]] = []  # and whether the step is followed by a draw
        self.sample_s: list[float] = []

    def forward(self, batch: ForwardBatch) -> Float32:
        start_s = time.perf_counter()
        logits = self._backend.forward(batch)
        self.forward_s.append((time.perf_counter() - start_s, len(batch.logits_rows) > 0))
        return logits

    def sample(self, batch: SampleBatch) -> SampleResult:
        start_s = time.perf_counter()
        result = self._backend.sample(batch)
        self.sample_s.append(time.perf_counter() - start_s)
        return result

    def close(self) -> None:
        """Leave the backend open, which belongs to the caller."""


def measure_request(
    backend: Backend, encode: Callable[[], Sequence[int]], tokenizer: ByteTokens, max_tokens: int
) -> TimeBudget:
    """Answer the prompt that `encode` gives with `max_tokens` tokens, once to warm up and NUM_RUNS times.

    The answer goes past its natural end, so that runs can be compared. Nobody else may use the backend meanwhile.
    """
    runs = [_run(backend, encode, tokenizer, max_tokens) for _ in range(NUM_RUNS + 1)][1:]
    return sorted(runs, key=lambda run: run.total_ms)[len(runs) // 2]


def _run(backend: Backend, encode: Callable[[], Sequence[int]], tokenizer: ByteTokens, max_tokens: int) -> TimeBudget:
    timed = _TimedBackend(backend)
    num_tokens = backend.num_blocks * backend.block_tokens
    engine = LocalEngine(timed, context_length=num_tokens, prefix_cache=False)
    try:
        start_s = time.perf_counter()
        prompt_ids = tuple(encode())
        tokenized_s = time.perf_counter()
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        stream = engine.submit(Request(prompt_ids, params, "explain"))
        token_ids = [event.token_id for event in stream if event.token_id is not None]
        # not before, as what this thread does beside a step would be counted twice
        answered_s = time.perf_counter()
        detokenizer = StreamingDetokenizer(tokenizer)
        for token_id in token_ids:
            detokenizer.push(token_id)
        end_s = time.perf_counter()
    finally:
        engine.close()
    assert stream.first_token_s is not None, "max_tokens is at least 1"
    first = next(index for index, (_, is_drawn) in enumerate(timed.forward_s) if is_drawn) + 1
    parts = {
        "tokenize_ms": (tokenized_s - start_s) * 1e3,
        "queue_ms": stream.queue_ms or 0.0,
        "prefill_ms": sum(seconds for seconds, _ in timed.forward_s[:first]) * 1e3,
        "decode_ms": sum(seconds for seconds, _ in timed.forward_s[first:]) * 1e3,
        "sample_ms": sum(timed.sample_s) * 1e3,
        "detokenize_ms": (end_s - answered_s) * 1e3,
    }
    total_ms = (end_s - start_s) * 1e3
    return TimeBudget(
        num_prompt_tokens=len(prompt_ids),
        num_new_tokens=stream.num_tokens,
        **parts,
        other_ms=max(total_ms - sum(parts.values()), 0.0),
        total_ms=total_ms,
        ttft_ms=(stream.first_token_s - start_s) * 1e3,
        tpot_ms=stream.tpot_ms,
    )
