"""What a request answers never depends on how it was scheduled; blocks add up after every step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from subsecond.core.errors import SubsecondError
from subsecond.engine.blocks import BlockAllocator
from subsecond.engine.pacing import StepPacer
from subsecond.engine.request import Request, SamplingParams
from subsecond.engine.scheduler import Scheduler, Sequence
from subsecond.engine.step_loop import StepLoop
from subsecond.engine.stream import TokenStream
from tests.unit.engine.fake_backend import FakeBackend

MAX_LENGTH = 120


class Unpaced(StepPacer):
    """Measures nothing, so prompts take all rows and a plan does not depend on how busy the machine is."""

    def record(self, num_answers: int, num_prompt_rows: int, step_ms: float) -> None:
        pass


class Bench:
    """A step loop driven by hand, with the allocator checked after every step."""

    def __init__(
        self, backend: FakeBackend | None = None, *, max_rows: int | None = None, has_prefix_cache: bool = True
    ) -> None:
        self.backend = backend or FakeBackend()
        self.allocator = BlockAllocator(
            self.backend.num_blocks,
            self.backend.block_tokens,
            variant=self.backend.variant,
        )
        self.has_prefix_cache = has_prefix_cache
        self.scheduler = Scheduler(self.allocator, max_rows or self.backend.max_rows, Unpaced())
        self.arrivals: list[str] = []
        self.loop = StepLoop(self.backend, self.scheduler, forget=lambda _: None)

    def add(self, request: Request) -> TokenStream:
        self.arrivals.append(request.id)
        seed = request.params.seed or 0
        num_prompt = len(request.prompt_ids)
        stream = TokenStream(request.id, seed=seed, num_prompt_tokens=num_prompt, variant="fake", cancel=lambda _: None)
        max_tokens = request.params.max_tokens
        max_length = MAX_LENGTH if max_tokens is None else num_prompt + max_tokens
        salt = None if self.has_prefix_cache else f"request {request.id}"
        sequence = Sequence(request, seed, max_length, salt)
        if request.deadline_ms is not None:
            sequence.deadline_s = stream.start_s + request.deadline_ms / 1e3
        self.loop.add(sequence, stream)
        return stream

    def step(self) -> None:
        self.loop.step()
        self.check()

    def check(self) -> None:
        running = [sequence.table for sequence in self.scheduler.running]
        self.allocator.check([table for table in running if table is not None])
        assert all(table is not None for table in running)
        assert all(sequence.table is None for sequence in self.scheduler.waiting)
        for sequences in (self.scheduler.running, self.scheduler.waiting):
            order = [(item.request.priority, self.arrivals.index(item.request.id)) for item in sequences]
            assert order == sorted(order), "sequences stand by priority, then by arrival"

    def run(self) -> None:
        for _ in range(10_000):
            if not self.loop.has_work:
                assert self.allocator.num_free == self.backend.num_blocks
                return
            self.step()
        raise AssertionError("the requests do not come to an end")

    def answer(self, *requests: Request) -> list[list[int | None]]:
        streams = [self.add(request) for request in requests]
        self.run()
        return [[event.token_id for event in stream] for stream in streams]


def requests(num: int = 8, *, seed: int = 1) -> list[Request]:
    """Requests of mixed lengths and settings; some share the start of their prompts."""
    choose = random.Random(seed)
    shared = [choose.randrange(50) for _ in range(24)]
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 5},
        {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": 1.0},
        {"logit_bias": {3: 5.0}, "temperature": 0.7, "seed": 2**64 - 1},
    ]
    found = []
    for index in range(num):
        prompt = shared[: choose.choice((0, 8, 24))] + [choose.randrange(50) for _ in range(choose.randrange(1, 40))]
        params = SamplingParams(max_tokens=choose.randrange(1, 30), **settings[index % 4])
        found.append(Request(tuple(prompt), params, str(index)))
    return found


@pytest.fixture(scope="module")
def expected() -> list[list[int | None]]:
    """Each request alone, in an engine of its own, without prefix cache."""
    return [Bench(has_prefix_cache=False).answer(request)[0] for request in requests()]


@pytest.mark.parametrize("has_prefix_cache", [False, True])
@pytest.mark.parametrize("max_rows", [1, 16, 64, 512])
def test_beside_seven_others_in_chunks(expected: list[Any], max_rows: int, has_prefix_cache: bool) -> None:
    bench = Bench(FakeBackend(num_blocks=200), max_rows=max_rows, has_prefix_cache=has_prefix_cache)
    assert bench.answer(*requests()) == expected
    assert max(bench.backend.num_rows) <= max_rows
    assert bench.scheduler.num_preemptions == 0


@pytest.mark.parametrize("max_rows", [1, 16, 64, 512])
def test_one_after_the_other_with_a_filled_cache(expected: list[Any], max_rows: int) -> None:
    bench = Bench(FakeBackend(num_blocks=200), max_rows=max_rows)
    for _ in range(2):
        assert [bench.answer(request)[0] for request in requests()] == expected
    assert bench.loop.counts.num_cached_tokens > 0


@pytest.mark.parametrize("has_prefix_cache", [False, True])
@pytest.mark.parametrize("max_rows", [7, 512])
@pytest.mark.parametrize("num_blocks", [24, 30, 40])
def test_pools_too_small_for_all(expected: list[Any], num_blocks: int, max_rows: int, has_prefix_cache: bool) -> None:
    bench = Bench(FakeBackend(num_blocks=num_blocks), max_rows=max_rows, has_prefix_cache=has_prefix_cache)
    assert bench.answer(*requests()) == expected


def test_preemption_happens_and_loses_nothing() -> None:
    few = [Request((index,) * 4, SamplingParams(max_tokens=40), str(index)) for index in range(4)]
    alone = [Bench().answer(request)[0] for request in few]
    bench = Bench(FakeBackend(num_blocks=16))
    assert bench.answer(*few) == alone
    assert bench.scheduler.num_preemptions > 0


def test_arrivals_and_cancellations_in_between(expected: list[Any]) -> None:
    choose = random.Random(3)
    bench = Bench(FakeBackend(num_blocks=50), max_rows=20)
    others = [bench.add(Request((7,) * 30, SamplingParams(max_tokens=50), f"other {index}")) for index in range(3)]
    streams = []
    for request in requests():
        streams.append(bench.add(request))
        for _ in range(choose.randrange(4)):
            bench.step()
    for other in others:
        bench.loop.cancel(other)
        bench.check()
        bench.step()
    bench.run()
    assert [[event.token_id for event in stream] for stream in streams] == expected
    assert {other.finish_reason for other in others} == {"cancelled"}


def test_decoding_goes_on_while_a_long_prompt_is_read() -> None:
    bench = Bench(max_rows=8)
    bench.add(Request((1,), SamplingParams(max_tokens=10), "short"))
    bench.step()
    bench.add(Request((2,) * 50, SamplingParams(max_tokens=1), "long"))
    bench.step()
    assert bench.backend.num_rows == [1, 8]
    assert [(span.sequence.request.id, span.start, span.end) for span in bench.scheduler.plan().spans] == [
        ("short", 2, 3),
        ("long", 7, 14),
    ]


def test_first_come_first_served() -> None:
    bench = Bench(FakeBackend(num_blocks=20))
    bench.add(Request((1,) * 60, SamplingParams(max_tokens=2), "first"))
    bench.add(Request((2,) * 60, SamplingParams(max_tokens=2), "second"))
    third = bench.add(Request((3,), SamplingParams(max_tokens=1), "third"))
    bench.step()
    assert third.num_tokens == 0, "a small request must not overtake: the one before it could wait for ever"


def test_a_prompt_waits_until_rows_are_left() -> None:
    bench = Bench(max_rows=8)
    for index in range(3):
        bench.add(Request((index,) * 12, SamplingParams(max_tokens=2), str(index)))
    bench.step()
    assert len(bench.scheduler.running) == 1
    bench.step()
    assert len(bench.scheduler.running) == 2


def test_a_newcomer_leaves_room_for_those_that_run() -> None:
    bench = Bench(FakeBackend(num_blocks=2))
    bench.answer(*(Request((1, 2, 3), SamplingParams(max_tokens=4), str(index)) for index in range(2)))
    assert bench.scheduler.num_preemptions == 0


def test_cached_tokens_are_not_computed_again() -> None:
    bench = Bench()
    prompt = tuple(range(40))
    for _ in range(2):
        bench.answer(Request(prompt, SamplingParams(max_tokens=1), "again"))
    assert bench.backend.num_rows == [40, 4]
    stream = bench.add(Request((*prompt, 1, 2), SamplingParams(max_tokens=1), "longer"))
    bench.run()
    assert stream.cached_tokens == 40


def test_an_answer_is_cached_for_the_next_turn() -> None:
    bench = Bench()
    prompt = tuple(range(10))
    (answer,) = bench.answer(Request(prompt, SamplingParams(max_tokens=20), "first turn"))
    follow_up = (*prompt, *(token for token in answer if token is not None), 1, 2, 3)
    stream = bench.add(Request(follow_up, SamplingParams(max_tokens=1), "second turn"))
    bench.run()
    assert stream.cached_tokens == 28


def test_a_late_cancellation_does_not_hit_the_next_request_with_that_id() -> None:
    bench = Bench()
    first = bench.add(Request((1,), SamplingParams(max_tokens=1), "same"))
    bench.run()
    second = bench.add(Request((2,), SamplingParams(max_tokens=3), "same"))
    bench.loop.cancel(first)
    bench.run()
    assert (first.finish_reason, second.finish_reason, second.num_tokens) == ("length", "length", 3)


def fails_once_at(step: int) -> Callable[[Any], None]:
    steps = iter(range(1000))

    def before_forward(batch: Any) -> None:
        if next(steps) == step:
            raise MemoryError("no tiles left")

    return before_forward


def test_a_failed_step_ends_its_requests_and_no_others(expected: list[Any]) -> None:
    bench = Bench(FakeBackend(num_blocks=21, before_forward=fails_once_at(3)))
    first = bench.add(Request((1,) * 60, SamplingParams(max_tokens=20), "hit"))
    spared = bench.add(requests()[0])
    bench.run()
    events = iter(first)
    assert [next(events).place for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SubsecondError, match="no tiles left") as caught:
        next(events)
    assert isinstance(caught.value.__cause__, MemoryError)
    assert [event.token_id for event in spared] == expected[0]
    assert bench.loop.counts.num_failed_steps == 1
    assert bench.loop.counts.last_error is not None


def test_end_of_sequence_and_stop_tokens() -> None:
    prompt = (1, 2, 3)
    (tokens,) = Bench().answer(Request(prompt, SamplingParams(max_tokens=20), "free"))
    token = tokens[5]
    assert token is not None
    end = tokens.index(token) + 1
    for request, length, reason in (
        (Request(prompt, SamplingParams(max_tokens=20), "eos", eos_ids=(token,)), end, "stop"),
        (Request(prompt, SamplingParams(max_tokens=20, stop_token_ids=(token,)), "stop"), end, "stop"),
        (Request(prompt, SamplingParams(max_tokens=20, ignore_eos=True), "on", eos_ids=(token,)), 20, "length"),
    ):
        bench = Bench()
        stream = bench.add(request)
        bench.run()
        events = list(stream)
        assert [event.token_id for event in events] == tokens[:length]
        assert [event.finish_reason for event in events] == [None] * (length - 1) + [reason]


def test_each_request_gets_the_log_probabilities_it_asked_for() -> None:
    bench = Bench()
    streams = [
        bench.add(Request((1, 2), SamplingParams(max_tokens=2, num_logprobs=num), str(num))) for num in (0, 2, 5)
    ]
    bench.run()
    none, two, five = (list(stream) for stream in streams)
    assert [len(event.top_logprobs) for event in (*none, *two, *five)] == [0, 0, 2, 2, 5, 5]
    assert two[0].top_logprobs == five[0].top_logprobs[:2]
    assert two[0].top_logprobs[0] == (two[0].token_id, two[0].logprob) == (none[0].token_id, none[0].logprob)


def test_history_counts_the_answer_and_only_marks_the_prompt() -> None:
    request = Request((4, 4, 9), SamplingParams(presence_penalty=1.0), "a")
    sequence = Sequence(request, 0, 10)
    for token in (9, 7, 7):
        sequence.append(token)
    assert sequence.history == {4: 0, 9: 1, 7: 2}
