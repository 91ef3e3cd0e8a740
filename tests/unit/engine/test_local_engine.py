"""The engine with its thread: submission, cancellation, limits, errors, both ways of reading."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from subsecond.core.errors import InputError, OverloadedError, SubsecondError
from subsecond.engine.local import LocalEngine
from subsecond.engine.request import FinishReason, Request, SamplingParams, TokenEvent
from subsecond.engine.stream import TokenStream, wake_readers
from tests.unit.engine.fake_backend import FakeBackend

PROMPT = (1, 2, 3)


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(FakeBackend(), context_length=200)
    yield engine
    engine.close()


def request(request_id: str = "a", prompt: tuple[int, ...] = PROMPT, **params: Any) -> Request:
    return Request(prompt, SamplingParams(**params), request_id)


class Gate:
    """Lets the backend compute one step for each `release`, so that a test decides what happens in between."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)

    def __call__(self, _: Any) -> None:
        self.started.release()
        assert self.allowed.acquire(timeout=30)

    def open(self) -> None:
        self.allowed.release(100_000)


def idle(engine: LocalEngine) -> bool:
    stats = engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks


def test_reading_in_threads_and_async_gives_the_same(engine: LocalEngine) -> None:
    blocking = [event.token_id for event in engine.submit(request(max_tokens=20))]

    async def read(request_id: str) -> list[int | None]:
        return [event.token_id async for event in engine.submit(request(request_id, max_tokens=20))]

    async def read_eight() -> list[list[int | None]]:
        return await asyncio.gather(*(read(str(index)) for index in range(8)))

    assert len(blocking) == 20
    assert asyncio.run(read_eight()) == [blocking] * 8


def test_many_threads_may_submit(engine: LocalEngine) -> None:
    answers: dict[int, list[int | None]] = {}

    def ask(index: int) -> None:
        answers[index] = [event.token_id for event in engine.submit(request(str(index), max_tokens=10))]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 16
    assert all(answer == answers[0] for answer in answers.values())
    assert idle(engine)


def test_a_late_reader_gets_every_event(engine: LocalEngine) -> None:
    stream = engine.submit(request(max_tokens=5))
    list(engine.submit(request("b", max_tokens=50)))
    assert [event.place for event in stream] == [0, 1, 2, 3, 4]


def test_times_and_counts_are_reported(engine: LocalEngine) -> None:
    stream = engine.submit(request(max_tokens=5))
    list(stream)
    assert stream.first_token_s is not None
    assert stream.last_token_s is not None
    assert stream.start_s <= stream.first_token_s <= stream.last_token_s
    assert stream.ttft_ms is not None
    assert stream.tpot_ms is not None
    assert stream.total_ms == pytest.approx(stream.ttft_ms + 4 * stream.tpot_ms)
    assert (stream.num_prompt_tokens, stream.num_tokens, stream.variant) == (3, 5, "fake")


def test_a_drawn_seed_is_reported_and_repeats_the_answer(engine: LocalEngine) -> None:
    first = engine.submit(request(temperature=1.0, max_tokens=20))
    tokens = [event.token_id for event in first]
    again = engine.submit(request(temperature=1.0, max_tokens=20, seed=first.seed))
    assert [event.token_id for event in again] == tokens
    other = engine.submit(request(temperature=1.0, max_tokens=20))
    assert other.seed != first.seed
    assert [event.token_id for event in other] != tokens


@pytest.mark.parametrize("read", ["to the end", "stop reading", "not at all"])
def test_cancel_frees_everything_within_a_step(read: str) -> None:
    gate = Gate()
    engine = LocalEngine(FakeBackend(before_forward=gate), context_length=200)
    stream = engine.submit(request())
    gate.allowed.release(3)
    for _ in range(4):
        assert gate.started.acquire(timeout=30)
    if read == "stop reading":
        for event in stream:
            if event.place == 1:
                break
    else:
        engine.cancel("a")
    gate.allowed.release()  # the step that was running while the request was cancelled
    if read == "to the end":
        events = list(stream)
        assert [event.place for event in events] == [0, 1, 2, 3, 4]
        assert events[-1].token_id is None
        assert events[-1].finish_reason == "cancelled"
    gate.open()
    list(engine.submit(request("b", max_tokens=1)))  # once it is answered, the step before it is over
    assert stream.finish_reason == "cancelled"
    assert idle(engine)
    engine.close()


def test_leaving_an_async_loop_cancels(engine: LocalEngine) -> None:
    async def leave() -> None:
        events = aiter(engine.submit(request()))
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    list(engine.submit(request("b", max_tokens=1)))
    assert idle(engine)


def test_a_cancelled_task_cancels_its_request() -> None:
    gate = Gate()
    engine = LocalEngine(FakeBackend(before_forward=gate), context_length=200)
    stream = engine.submit(request())

    async def read() -> None:
        async for _ in stream:
            pass

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.01)

    asyncio.run(give_up())
    gate.open()
    list(engine.submit(request("b", max_tokens=1)))
    assert stream.finish_reason == "cancelled"
    engine.close()


def test_cancelling_the_unknown_or_finished_does_nothing(engine: LocalEngine) -> None:
    list(engine.submit(request(max_tokens=1)))
    engine.cancel("a")
    engine.cancel("nobody")
    assert len(list(engine.submit(request(max_tokens=3)))) == 3


def test_who_cancels_before_asking_has_no_step_beside_the_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the engine's thread stands when both orders come: here it is about to take up what was submitted."""
    gate = Gate()
    backend = FakeBackend(before_forward=gate)
    engine = LocalEngine(backend, context_length=200)
    engine.submit(request())
    assert gate.started.acquire(timeout=30)
    accept, later = engine._accept_submitted, list[TokenStream]()

    def accept_after_orders() -> None:
        if not later:
            engine.cancel("a")
            later.append(engine.submit(request("b", max_tokens=1)))
        accept()

    monkeypatch.setattr(engine, "_accept_submitted", accept_after_orders)
    gate.open()
    assert gate.started.acquire(timeout=30)
    assert len(list(later[0])) == 1
    assert backend.num_rows == [3, 3]
    engine.close()


def test_one_id_is_live_once() -> None:
    gate = Gate()
    engine = LocalEngine(FakeBackend(before_forward=gate), context_length=200)
    stream = engine.submit(request(max_tokens=2))
    with pytest.raises(InputError, match="id='a' belongs to a live request"):
        engine.submit(request())
    gate.open()
    list(stream)
    assert len(list(engine.submit(request(max_tokens=2)))) == 2
    engine.close()


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ((1,) * 200, {}, "the prompt has 200 tokens, but the context length is 200"),
        ((1,) * 100, {"max_tokens": 101}, r"max_tokens=101 exceed the context length of 200 .* at most 100"),
        ((50,), {}, "prompt has token id 50; the vocabulary has ids 0 to 49"),
        ((-1,), {}, "prompt has token id -1"),
        ((1,), {"logit_bias": {50: 1}}, "logit_bias has token id 50"),
        ((1,), {"stop_token_ids": [50]}, "stop_token_ids has token id 50"),
    ],
)
def test_what_can_never_be_answered_is_refused(
    engine: LocalEngine, prompt: tuple[int, ...], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine.submit(request("a", prompt, **params))
    assert len(list(engine.submit(request(max_tokens=1)))) == 1


def test_a_request_may_fill_the_context(engine: LocalEngine) -> None:
    assert len(list(engine.submit(request("a", (1,) * 100, max_tokens=100)))) == 100


def test_the_pool_may_be_smaller_than_the_context() -> None:
    engine = LocalEngine(FakeBackend(num_blocks=4), context_length=200)
    with pytest.raises(InputError, match="key/value memory is 16 tokens"):
        engine.submit(request("a", (1,) * 16))
    events = list(engine.submit(request()))
    assert len(events) == 13
    assert events[-1].finish_reason == "length"
    engine.close()


def test_without_max_tokens_the_context_is_the_limit(engine: LocalEngine) -> None:
    events = list(engine.submit(request()))
    assert len(events) == 197
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize("max_rows", [0, 513])
def test_max_rows_stays_within_the_backend(max_rows: int) -> None:
    with pytest.raises(InputError, match=f"max_rows={max_rows}"):
        LocalEngine(FakeBackend(), context_length=200, max_rows=max_rows)


def test_a_failed_step_is_raised_at_the_reader_and_remembered() -> None:
    fails = [True]

    def before_forward(batch: Any) -> None:
        if fails:
            fails.clear()
            raise ValueError("bad tile")

    engine = LocalEngine(FakeBackend(before_forward=before_forward), context_length=200)
    with pytest.raises(SubsecondError, match="bad tile"):
        list(engine.submit(request()))
    assert engine.stats().num_failed_steps == 1
    assert "bad tile" in str(engine.stats().last_error)
    assert idle(engine)
    assert len(list(engine.submit(request(max_tokens=2)))) == 2
    engine.close()


def test_a_failed_step_is_raised_at_an_async_reader() -> None:
    def before_forward(batch: Any) -> None:
        raise ValueError("bad tile")

    engine = LocalEngine(FakeBackend(before_forward=before_forward), context_length=200)

    async def read() -> None:
        async for _ in engine.submit(request()):
            pass

    with pytest.raises(SubsecondError, match="bad tile"):
        asyncio.run(read())
    engine.close()


def test_a_bug_in_the_scheduler_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch, engine: LocalEngine) -> None:
    def plan(self: object) -> None:
        raise AssertionError("no such block")

    monkeypatch.setattr("subsecond.engine.scheduler.Scheduler.plan", plan)
    with pytest.raises(SubsecondError, match="no such block"):
        list(engine.submit(request()))
    with pytest.raises(SubsecondError, match="the engine stopped working"):
        engine.submit(request("b"))
    assert "no such block" in str(engine.stats().last_error)


def test_close_ends_what_is_live_and_can_be_repeated() -> None:
    backend = FakeBackend()
    engine = LocalEngine(backend, context_length=200)
    stream = engine.submit(request())
    engine.close()
    engine.close()
    assert list(stream)[-1].finish_reason in ("cancelled", "length")
    with pytest.raises(SubsecondError, match="closed"):
        engine.submit(request("b"))
    assert backend.num_closed == 0, "whoever made the backend closes it"


def test_an_engine_that_was_never_used_closes() -> None:
    LocalEngine(FakeBackend(), context_length=200).close()


def test_readers_of_one_loop_are_woken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [
        TokenStream(str(index), seed=0, num_prompt_tokens=1, variant="", cancel=lambda _: None) for index in range(5)
    ]
    calls: list[object] = []

    async def read(stream: TokenStream) -> list[int | None]:
        return [event.token_id async for event in stream]

    async def main() -> list[list[int | None]]:
        readers = [asyncio.create_task(read(stream)) for stream in streams]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        schedule = loop.call_soon_threadsafe

        def count(*args: Any) -> object:
            calls.append(args)
            return schedule(*args)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        ends: list[FinishReason | None] = [None, "length"]
        for token_id, reason in zip((7, 8), ends, strict=True):
            for stream in streams:
                stream.add(TokenEvent(token_id, 0.0, (), 0, reason))
            wake_readers(streams)
            await asyncio.sleep(0.01)
        return [await reader for reader in readers]

    assert asyncio.run(main()) == [[7, 8]] * 5
    assert len(calls) == 2


def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_says_when_to_ask_again(engine: LocalEngine) -> None:
    late = Request(PROMPT * 20, SamplingParams(max_tokens=1), "late", deadline_ms=1.0)
    engine._scheduler.pacer.record(0, 10, 20.0)
    with pytest.raises(OverloadedError, match=r"about 120 ms, but deadline_ms=1; .* later deadline") as refusal:
        engine.submit(late)
    assert refusal.value.retry_after_s == pytest.approx(0.119, abs=0.001)
    in_time = Request(PROMPT * 20, SamplingParams(max_tokens=1), "in time", deadline_ms=60_000)
    assert len(list(engine.submit(in_time))) == 1


def test_a_machine_that_was_slow_is_tried_again(engine: LocalEngine) -> None:
    engine._scheduler.pacer.record(0, 10, 10_000.0)
    for number in range(100):
        try:
            engine.submit(Request(PROMPT, SamplingParams(max_tokens=1), f"{number}", deadline_ms=300.0)).cancel()
        except OverloadedError:
            continue
        break
    else:
        pytest.fail("an idle engine refused a hundred requests by what it had measured once")


def test_a_full_context_can_be_read_when_no_token_is_wanted(engine: LocalEngine) -> None:
    events = list(engine.submit(request("a", (1,) * 200, max_tokens=0)))
    assert [(event.token_id, event.finish_reason) for event in events] == [(None, "length")]


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_the_prefix_cache_can_be_switched_off_between_requests(prefix_cache: bool) -> None:
    engine = LocalEngine(FakeBackend(), context_length=200, prefix_cache=prefix_cache)
    streams = [engine.submit(request(name, PROMPT * 4, max_tokens=2)) for name in "ab"]
    answers = [[event.token_id for event in stream] for stream in streams]
    again = engine.submit(request("c", PROMPT * 4, max_tokens=2))
    assert [event.token_id for event in again] == answers[0] == answers[1]
    assert (again.cached_tokens > 0) is prefix_cache
    stats = engine.stats()
    assert stats.num_prompt_tokens == 3 * 4 * len(PROMPT)
    assert stats.is_alive
    engine.close()
    assert not engine.stats().is_alive
