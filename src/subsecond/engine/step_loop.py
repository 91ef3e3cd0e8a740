"""Run steps for live requests and hand each token to its stream; knows no threads, the engine around it has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from subsecond.backends.batch import SampleResult
from subsecond.backends.protocol import Backend
from subsecond.core.errors import SubsecondError
from subsecond.engine.batch_builder import BatchBuilder
from subsecond.engine.request import FinishReason, TokenEvent
from subsecond.engine.scheduler import Scheduler, Sequence, StepPlan
from subsecond.engine.stream import TokenStream, wake_readers


@dataclass(slots=True)
class StepCounts:
    """Sums since the loop was made, and what the last failed step raised."""

    num_steps: int = 0
    num_rows: int = 0
    num_cached_tokens: int = 0
    num_failed_steps: int = 0
    last_error: str | None = None


class StepLoop:
    """Live requests with their streams, by request id.

    `forget` is called with the id of each that has ended, `wake` with the streams that got the tokens of a step.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        forget: Callable[[str], None],
        wake: Callable[[list[TokenStream]], None] = wake_readers,
    ) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._forget = forget
        self._wake = wake
        self._builder = BatchBuilder()
        self._live: dict[str, tuple[Sequence, TokenStream]] = {}
        self.counts = StepCounts()

    @property
    def has_work(self) -> bool:
        """Whether a step is due."""
        return self._scheduler.has_work

    def add(self, sequence: Sequence, stream: TokenStream) -> None:
        """Take up a request."""
        self._live[sequence.request.id] = (sequence, stream)
        self._scheduler.add(sequence)

    def cancel(self, stream: TokenStream) -> None:
        """End the request of a stream and release its blocks; one that has ended is left alone."""
        sequence, live_stream = self._live.get(stream.request_id, (None, None))
        if sequence is not None and live_stream is stream:
            self._end(sequence)
            stream.push(TokenEvent(None, 0.0, (), sequence.num_answer_tokens, "cancelled"))

    def cancel_all(self) -> None:
        """End every live request."""
        for _, stream in list(self._live.values()):
            self.cancel(stream)

    def step(self) -> None:
        """Compute one step. If the backend raises, the requests in it end by that error and the others go on."""
        plan = self._scheduler.plan()
        assert plan.spans, "there is work, and no row of it fits into a step"
        wanting = [span.sequence for span in plan.spans if span.wants_logits]
        try:
            self._backend.forward(self._builder.forward_batch(plan))
            result = self._backend.sample(self._builder.sample_batch(wanting)) if wanting else None
        except Exception as error:
            self._fail(plan, error)
            return
        self._scheduler.commit(plan)
        self.counts.num_steps += 1
        self.counts.num_rows += plan.num_rows
        if result is not None:
            self._deliver(wanting, result)

    def _deliver(self, sequences: list[Sequence], result: SampleResult) -> None:
        """Give every sequence its token and every stream its event; readers are woken when all have theirs."""
        streams = []
        rows = zip(sequences, result.token_ids.tolist(), result.logprobs.tolist(), strict=True)
        for row, (sequence, token_id, logprob) in enumerate(rows):
            stream = self._live[sequence.request.id][1]
            num_logprobs = sequence.request.params.num_logprobs
            top: tuple[tuple[int, float], ...] = ()
            if num_logprobs:
                top_ids, top_logprobs = result.top_ids[row, :num_logprobs], result.top_logprobs[row, :num_logprobs]
                top = tuple(zip(top_ids.tolist(), top_logprobs.tolist(), strict=True))
            place = sequence.num_answer_tokens
            if place == 0:
                stream.cached_tokens = sequence.num_cached_tokens or 0
                self.counts.num_cached_tokens += stream.cached_tokens
            sequence.append(token_id)
            reason: FinishReason | None = None
            if token_id in sequence.stop_ids:
                reason = "stop"
            elif len(sequence.token_ids) >= sequence.max_length:
                reason = "length"
            if reason is not None:
                self._end(sequence)
            stream.add(TokenEvent(token_id, logprob, top, place, reason))
            streams.append(stream)
        self._wake(streams)

    def _fail(self, plan: StepPlan, error: Exception) -> None:
        self.counts.num_failed_steps += 1
        self.counts.last_error = repr(error)
        for span in plan.spans:
            _, stream = self._live[span.sequence.request.id]
            self._end(span.sequence)
            stream.fail(failure_of(error))

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        del self._live[sequence.request.id]
        self._forget(sequence.request.id)


def failure_of(error: Exception) -> SubsecondError:
    """Return what a reader gets; an exception object of its own, because raising one changes its traceback."""
    failure = SubsecondError(f"the step that computed this request failed: {error!r}; the tokens before it are valid")
    failure.__cause__ = error
    return failure
