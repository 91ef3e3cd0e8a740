"""Priorities, deadlines, samples of one prompt, log-probabilities of prompts, constraints, pacing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from subsecond.backends.batch import UInt32
from subsecond.core.errors import InputError, SubsecondError
from subsecond.engine.constraint import Constraint
from subsecond.engine.pacing import StepPacer
from subsecond.engine.request import Request, SamplingParams, TokenEvent
from subsecond.engine.scheduler import MAX_PROMPT_LOGITS_ROWS
from subsecond.engine.stream import TokenStream
from tests.unit.engine.fake_backend import FakeBackend
from tests.unit.engine.test_scheduling import Bench


def request(name: str, num_prompt: int = 6, *, max_tokens: int | None = 5, seed: int = 3, **options: Any) -> Request:
    fields = {key: options.pop(key) for key in list(options) if key in Request.__dataclass_fields__}
    prompt = fields.pop("prompt_ids", tuple(range(1, 1 + num_prompt)))
    return Request(prompt, SamplingParams(max_tokens=max_tokens, seed=seed, **options), name, **fields)


def tokens(stream: TokenStream) -> list[int | None]:
    return [event.token_id for event in stream]


def last(stream: TokenStream) -> TokenEvent:
    return list(stream)[-1]


def test_a_better_priority_is_served_first() -> None:
    bench = Bench(max_rows=6)
    streams = [bench.add(request(name, priority=priority)) for name, priority in (("a", 0), ("b", 5), ("c", -1))]
    bench.step()
    assert [stream.num_tokens for stream in streams] == [0, 0, 1]
    bench.run()


def test_a_better_priority_takes_the_blocks_of_a_worse_one_and_nothing_is_lost() -> None:
    def asked(index: int, priority: int) -> Request:
        prompt = tuple(range(index, index + 12))
        return request("abc"[index], prompt_ids=prompt, max_tokens=8, priority=priority)

    alone = [Bench().answer(asked(index, 0))[0] for index in range(3)]
    bench = Bench(FakeBackend(num_blocks=10))
    low = [bench.add(asked(index, 1)) for index in range(2)]
    bench.step()
    high = bench.add(asked(2, 0))
    bench.step()
    assert high.num_tokens == 1
    assert bench.scheduler.num_preemptions == 1
    bench.run()
    assert [tokens(stream) for stream in (*low, high)] == alone


def test_equal_priorities_do_not_preempt_each_other() -> None:
    bench = Bench(FakeBackend(num_blocks=9))
    bench.add(request("a", 12, max_tokens=8))
    bench.step()
    late = bench.add(request("b", 30, max_tokens=2))
    bench.step()
    assert bench.scheduler.num_preemptions == 0
    assert late.num_tokens == 0
    bench.run()


def test_a_deadline_ends_an_answer_and_frees_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    late, other = bench.add(request("a", deadline_ms=5000)), bench.add(request("b"))
    bench.step()
    now = time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: now + 6)
    bench.run()
    assert last(late) == TokenEvent(None, 0.0, (), 1, "deadline")
    assert last(other).finish_reason == "length"


def test_a_deadline_can_pass_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    stream = bench.add(request("a", deadline_ms=5000))
    now = time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: now + 6)
    bench.step()
    assert last(stream) == TokenEvent(None, 0.0, (), 0, "deadline")
    assert not bench.loop.has_work


@pytest.mark.parametrize("has_prefix_cache", [False, True])
@pytest.mark.parametrize("max_rows", [8, 512])
def test_samples_compute_their_prompt_once(has_prefix_cache: bool, max_rows: int) -> None:
    names = [f"sample-{index}" for index in range(3)]
    asked = [request(name, 23, temperature=1.0, sample_index=index, group="g") for index, name in enumerate(names)]
    alone = [Bench().answer(each)[0] for each in asked]
    assert len({tuple(answer) for answer in alone}) == 3
    bench = Bench(max_rows=max_rows, has_prefix_cache=True)
    if not has_prefix_cache:  # as LocalEngine has it: one salt a group
        bench.has_prefix_cache = True
        asked = [Request(**{**_fields(each), "salt": "group g"}) for each in asked]
    assert bench.answer(*asked) == alone
    # 20 of 23 tokens fill blocks: two further samples compute the rest, and all their answers but the last token
    assert sum(bench.backend.num_rows) == 23 + 2 * 3 + 3 * 4


def _fields(value: Request) -> dict[str, Any]:
    return {name: getattr(value, name) for name in Request.__dataclass_fields__}


def reference_logprobs(prompt: tuple[int, ...]) -> list[float]:
    """Of each token of the prompt after the first, by asking for it as the answer to those before it."""
    found = []
    for end in range(1, len(prompt)):
        bench = Bench()
        stream = bench.add(request("x", prompt_ids=prompt[:end], max_tokens=1, num_logprobs=20))
        bench.run()
        backend_logits = bench.backend._logits[0].astype(np.float64)
        found.append(float(backend_logits[prompt[end]] - np.log(np.exp(backend_logits).sum())))
        assert stream.num_tokens == 1
    return found


PROMPT = (7, 3, 3, 40, 12, 9, 1, 30, 22, 8, 11)


@pytest.mark.parametrize("max_rows", [1, 3, 512])
@pytest.mark.parametrize("max_tokens", [0, 1, 4])
def test_log_probabilities_of_a_prompt(max_rows: int, max_tokens: int) -> None:
    expected = reference_logprobs(PROMPT)
    bench = Bench(max_rows=max_rows)
    bench.answer(request("before", prompt_ids=PROMPT))  # fills the cache, which must not hide rows
    other = bench.add(request("other", 5, temperature=0.7, frequency_penalty=0.5))
    stream = bench.add(
        request(
            "a", prompt_ids=PROMPT, max_tokens=max_tokens, num_prompt_logprobs=2, logit_bias={3: 50.0}, temperature=1.0
        )
    )
    bench.run()
    assert [item.logprob for item in stream.prompt_logprobs] == pytest.approx(expected, abs=1e-5)
    assert all(len(item.top_logprobs) == 2 for item in stream.prompt_logprobs)
    assert all(item.top_logprobs[0][1] >= item.logprob - 1e-6 for item in stream.prompt_logprobs)
    end = last(stream)
    assert end.finish_reason == "length"
    assert stream.num_tokens == max_tokens
    assert tokens(other) == Bench().answer(request("other", 5, temperature=0.7, frequency_penalty=0.5))[0]


def test_log_probabilities_of_a_prompt_survive_preemption() -> None:
    expected = reference_logprobs(PROMPT)
    bench = Bench(FakeBackend(num_blocks=4), max_rows=4)
    stream = bench.add(request("a", prompt_ids=PROMPT, max_tokens=2, num_prompt_logprobs=0, priority=1))
    bench.step()
    bench.add(request("b", 10, max_tokens=4, priority=0))
    bench.run()
    assert bench.scheduler.num_preemptions == 1
    assert [item.logprob for item in stream.prompt_logprobs] == pytest.approx(expected, abs=1e-5)


def test_the_logits_that_a_step_keeps_for_prompts_are_bounded() -> None:
    kept: list[int] = []
    bench = Bench(FakeBackend(num_blocks=200, before_forward=lambda batch: kept.append(len(batch.logits_rows))))
    prompt = tuple(index % 50 for index in range(3 * MAX_PROMPT_LOGITS_ROWS))
    streams = [bench.add(request(name, prompt_ids=prompt, num_prompt_logprobs=0)) for name in "ab"]
    bench.run()
    assert max(kept) <= MAX_PROMPT_LOGITS_ROWS + 2
    assert [len(stream.prompt_logprobs) for stream in streams] == [len(prompt) - 1] * 2


def test_no_token_is_wanted() -> None:
    bench = Bench()
    stream = bench.add(request("a", max_tokens=0))
    bench.run()
    assert list(stream) == [TokenEvent(None, 0.0, (), 0, "length")]


class Alternating(Constraint):
    """Even tokens at even places, odd ones at odd places; the token 0 ends it after `length` tokens."""

    def __init__(self, length: int = 6, fail_at: int | None = None, empty_at: int | None = None) -> None:
        self.taken: list[int] = []
        self._length, self._fail_at, self._empty_at = length, fail_at, empty_at

    def fill_mask(self, mask: UInt32) -> None:
        place = len(self.taken)
        if place == self._fail_at:
            raise InputError("this grammar fails")
        mask[:] = 0x55555554 if place % 2 == 0 else 0xAAAAAAAA
        if place >= self._length:
            mask[:] = 0
            mask[0] = 1
        if place == self._empty_at:
            mask[:] = 0

    def advance(self, token_id: int) -> None:
        assert token_id % 2 == len(self.taken) % 2 or token_id == 0
        self.taken.append(token_id)


def constrained(name: str, make: Callable[[], Constraint], **options: Any) -> Request:
    return request(name, max_tokens=20, temperature=1.0, constraint=make, eos_ids=(0,), **options)


@pytest.mark.parametrize("num_blocks", [64, 9])
def test_a_constraint_decides_what_may_come_next(num_blocks: int) -> None:
    bench = Bench(FakeBackend(num_blocks=num_blocks))
    free = request("free", 9, max_tokens=12, temperature=1.0)
    streams = [bench.add(constrained(name, Alternating)) for name in "ab"]
    other = bench.add(free)
    bench.run()
    for stream in streams:
        ids = tokens(stream)
        assert len(ids) == 7
        assert ids[-1] == 0
        assert [token % 2 for token in ids[:-1] if token is not None] == [0, 1] * 3
        assert stream.finish_reason == "stop"
    assert tokens(other) == Bench().answer(free)[0]


@pytest.mark.parametrize(
    ("options", "message"), [({"fail_at": 2}, "this grammar fails"), ({"empty_at": 2}, "no token can be drawn")]
)
def test_a_constraint_that_fails_ends_its_own_request_alone(options: dict[str, int], message: str) -> None:
    bench = Bench()
    bad = bench.add(constrained("bad", lambda: Alternating(**options)))
    good = bench.add(constrained("good", Alternating))
    bench.run()
    with pytest.raises(SubsecondError, match=message):
        tokens(bad)
    assert len(tokens(good)) == 7
    assert bench.loop.counts.num_failed_steps == 0


def test_a_constraint_has_an_end_that_cannot_be_ignored() -> None:
    with pytest.raises(InputError, match="ignore_eos"):
        request("a", ignore_eos=True, constraint=Alternating)


def test_prompts_are_paced_beside_answers() -> None:
    bench = Bench(FakeBackend(num_blocks=200, max_rows=100))
    bench.scheduler.pacer.record = lambda *_: None  # type: ignore[method-assign]
    bench.scheduler.pacer.prompt_rows = lambda num_answers, *_: 7 if num_answers else 100  # type: ignore[method-assign]
    running = bench.add(request("a", 4, max_tokens=40))
    bench.step()
    bench.add(request("b", 60, max_tokens=2))
    for _ in range(8):
        bench.step()
    assert bench.backend.num_rows == [4] + [8] * 8
    assert running.num_tokens == 9
    bench.run()


def test_the_pacer_learns_from_steps() -> None:
    bench, pacer = Bench(), StepPacer()
    bench.scheduler.pacer = pacer
    bench.answer(request("a", 12, max_tokens=6))
    assert pacer.prompt_row_ms is not None
    assert pacer.answer_step_ms(1) is not None
