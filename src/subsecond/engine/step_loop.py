"""Run steps for live requests and hand each token to its stream; knows no threads, the engine around it has one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from subsecond.backends.batch import SampleResult
from subsecond.backends.protocol import Backend
from subsecond.core.errors import SubsecondError
from subsecond.engine.batch_builder import BatchBuilder
from subsecond.engine.masks import MaskWriter
from subsecond.engine.request import FinishReason, PromptLogprobs, TokenEvent
from subsecond.engine.scheduler import Scheduler, Sequence, StepPlan
from subsecond.engine.stream import TokenStream, wake_readers

NO_TOKEN = (
    "no token can be drawn: no logit is finite after bias and penalties, or the format that the answer is held to "
    "leaves none. Either the weights are damaged (pull the model again), or the format cannot be met"
)


@dataclass(slots=True)
class StepCounts:
    """Sums since the loop was made, and what the last failed step raised."""

    num_steps: int = 0
    num_rows: int = 0
    num_prompt_tokens: int = 0
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
        self._mask_writer = MaskWriter(backend.vocab_size)
        self._with_deadline: list[Sequence] = []
        self._live: dict[str, tuple[Sequence, TokenStream]] = {}
        self.counts = StepCounts()
        self.step_started_s: float | None = None  # by time.perf_counter(), while a step is being computed

    @property
    def has_work(self) -> bool:
        """Whether a step is due."""
        return self._scheduler.has_work

    def add(self, sequence: Sequence, stream: TokenStream) -> None:
        """Take up a request."""
        self._live[sequence.request.id] = (sequence, stream)
        if sequence.deadline_s is not None:
            self._with_deadline.append(sequence)
        self._scheduler.add(sequence)

    def cancel(self, stream: TokenStream) -> None:
        """End the request of a stream and release its blocks; one that has ended is left alone."""
        sequence, live_stream = self._live.get(stream.request_id, (None, None))
        if sequence is not None and live_stream is stream:
            self._finish(sequence, "cancelled")

    def cancel_all(self) -> None:
        """End every live request."""
        for _, stream in list(self._live.values()):
            self.cancel(stream)

    def close(self) -> None:
        """End the thread of the masks."""
        self._mask_writer.close()

    def step(self) -> None:
        """Compute one step. If the backend raises, the requests in it end by that error and the others go on."""
        start_s = time.perf_counter()
        self._end_late(start_s)
        if not self.has_work:
            return
        self.step_started_s = start_s
        plan = self._scheduler.plan()
        assert plan.spans, "there is work, and no row of it fits into a step"
        self._note_begun(plan, start_s)
        masks = None
        try:
            writing = self._mask_writer.begin([span.sequence for span in plan.spans if span.is_sampled])
            try:
                logits = self._backend.forward(self._builder.forward_batch(plan))
            finally:
                masks = writing.result() if writing is not None else None
            result = self._backend.sample(self._builder.sample_batch(plan, masks)) if len(logits) else None
        except Exception as error:
            self._fail(plan, error)
            return
        self._scheduler.commit(plan)
        num_prompt_rows = plan.num_rows - plan.num_answers
        self._scheduler.pacer.record(plan.num_answers, num_prompt_rows, (time.perf_counter() - start_s) * 1e3)
        self.counts.num_steps += 1
        self.counts.num_rows += plan.num_rows
        if result is not None:
            self._deliver(plan, result, {} if masks is None else masks.failures)
        self._end_without_answer(plan)
        self.step_started_s = None

    def _end_late(self, now_s: float) -> None:
        """End the requests whose time is over."""
        late = [item for item in self._with_deadline if item.deadline_s is not None and item.deadline_s <= now_s]
        for sequence in late:
            self._finish(sequence, "deadline")

    def _end_without_answer(self, plan: StepPlan) -> None:
        """End the requests that want no token, now that their prompt is computed."""
        for span in plan.spans:
            if not span.is_sampled and span.end == span.sequence.max_length:
                self._finish(span.sequence, "length")

    def _note_begun(self, plan: StepPlan, now_s: float) -> None:
        for span in plan.spans:
            if span.sequence.num_answer_tokens == 0:
                stream = self._live[span.sequence.request.id][1]
                if stream.admitted_s is None:
                    stream.admitted_s = now_s
                    stream.cached_tokens = span.sequence.num_cached_tokens or 0
                    self.counts.num_cached_tokens += stream.cached_tokens
                    self.counts.num_prompt_tokens += stream.num_prompt_tokens

    def _deliver(self, plan: StepPlan, result: SampleResult, failures: dict[Sequence, Exception]) -> None:
        """Give every sequence its token and every stream its event; readers are woken when all have theirs."""
        streams = []
        token_ids, logprobs = result.token_ids.tolist(), result.logprobs.tolist()
        row = 0
        for sequence, _, end, logits_start, is_sampled in plan.spans:
            num_prompt_rows = end - logits_start - is_sampled
            if num_prompt_rows:
                self._take_prompt_logprobs(sequence, result, row, logits_start, num_prompt_rows)
                row += num_prompt_rows
            if not is_sampled:
                continue
            stream = self._live[sequence.request.id][1]
            error = failures.get(sequence) if failures else None
            if error is None and row in result.failed_rows:
                error = SubsecondError(NO_TOKEN)
            if error is not None:
                self._end(sequence)
                stream.fail(error if isinstance(error, SubsecondError) else failure_of(error))
            else:
                top = _top(result, row, sequence.request.params.num_logprobs)
                stream.add(self._event(sequence, token_ids[row], logprobs[row], top))
                streams.append(stream)
            row += 1
        self._wake(streams)

    def _event(
        self, sequence: Sequence, token_id: int, logprob: float, top: tuple[tuple[int, float], ...]
    ) -> TokenEvent:
        """Append the token to its sequence, which may end by it."""
        place = sequence.num_answer_tokens
        sequence.append(token_id)
        reason: FinishReason | None = None
        if token_id in sequence.stop_ids:
            reason = "stop"
        elif len(sequence.token_ids) >= sequence.max_length:
            reason = "length"
        if reason is not None:
            self._end(sequence)
        return TokenEvent(token_id, logprob, top, place, reason)

    def _take_prompt_logprobs(
        self, sequence: Sequence, result: SampleResult, row: int, position: int, num_rows: int
    ) -> None:
        """Give the stream the log-probabilities of the tokens after `position`, whose rows begin at `row`."""
        num_top = sequence.request.params.num_prompt_logprobs or 0
        num_rows = min(num_rows, len(sequence.request.prompt_ids) - 1 - position)
        for index in range(row, row + num_rows):
            sequence.prompt_logprobs.append(PromptLogprobs(float(result.logprobs[index]), _top(result, index, num_top)))
        self._live[sequence.request.id][1].prompt_logprobs = sequence.prompt_logprobs

    def _fail(self, plan: StepPlan, error: Exception) -> None:
        self.counts.num_failed_steps += 1
        self.counts.last_error = repr(error)
        self.step_started_s = None
        for span in plan.spans:
            _, stream = self._live[span.sequence.request.id]
            self._end(span.sequence)
            stream.fail(failure_of(error))

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a request without a further token."""
        stream = self._live[sequence.request.id][1]
        self._end(sequence)
        stream.push(TokenEvent(None, 0.0, (), sequence.num_answer_tokens, reason))

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        if sequence.deadline_s is not None:
            self._with_deadline.remove(sequence)
        del self._live[sequence.request.id]
        self._forget(sequence.request.id)


def _top(result: SampleResult, row: int, num_logprobs: int) -> tuple[tuple[int, float], ...]:
    """(token id, logprob) of the most likely tokens of a row."""
    if not num_logprobs:
        return ()
    ids, logprobs = result.top_ids[row, :num_logprobs], result.top_logprobs[row, :num_logprobs]
    return tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))


def failure_of(error: Exception) -> SubsecondError:
    """Return what a reader gets; an exception object of its own, because raising one changes its traceback."""
    failure = SubsecondError(f"the step that computed this request failed: {error!r}; the tokens before it are valid")
    failure.__cause__ = error
    return failure
