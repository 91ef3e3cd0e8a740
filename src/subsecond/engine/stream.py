"""The tokens of one answer on their way from the engine's thread to one reader, threaded or async, with their times."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from subsecond.core.errors import SubsecondError
from subsecond.engine.request import FinishReason, PromptLogprobs, TokenEvent

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Event


class TokenStream:
    """Events of one request, read once with `for` or `async for`; leaving the loop early cancels the request.

    The engine fills it by `push` and `fail`; times are those of the engine, whenever the reader looks. They count from
    `start_s`, which a caller that had work to do before the submission sets back to its beginning.
    """

    def __init__(
        self, request_id: str, *, seed: int, num_prompt_tokens: int, variant: str, cancel: Callable[[str], None]
    ) -> None:
        self.request_id = request_id
        self.seed = seed
        self.num_prompt_tokens = num_prompt_tokens
        self.variant = variant
        self.cached_tokens = 0
        self.prompt_logprobs: list[PromptLogprobs] = []  # of the prompt's tokens from the second on, if asked for
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.start_s = time.perf_counter()
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._cancel = cancel
        self._events: SimpleQueue[TokenEvent | SubsecondError] = SimpleQueue()
        self._is_read = False  # to its end
        self._waiting: tuple[AbstractEventLoop, Event] | None = None  # the async reader, by what wakes it

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds from the start to the first token; None before it."""
        return None if self.first_token_s is None else (self.first_token_s - self.start_s) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean milliseconds a token after the first; None before the second."""
        if self.num_tokens < 2 or self.first_token_s is None or self.last_token_s is None:
            return None
        return (self.last_token_s - self.first_token_s) * 1e3 / (self.num_tokens - 1)

    @property
    def total_ms(self) -> float | None:
        """Milliseconds from the start to the latest token; None before the first."""
        return None if self.last_token_s is None else (self.last_token_s - self.start_s) * 1e3

    @property
    def queue_ms(self) -> float | None:
        """Milliseconds from the start until the engine began to work on the request; None before."""
        return None if self.admitted_s is None else (self.admitted_s - self.start_s) * 1e3

    @property
    def prefill_ms(self) -> float | None:
        """Milliseconds from then to the first token; None before it."""
        if self.admitted_s is None or self.first_token_s is None:
            return None
        return (self.first_token_s - self.admitted_s) * 1e3

    @property
    def decode_ms(self) -> float | None:
        """Milliseconds from the first token to the latest; None before the first."""
        if self.first_token_s is None or self.last_token_s is None:
            return None
        return (self.last_token_s - self.first_token_s) * 1e3

    @property
    def has_async_reader(self) -> bool:
        """Whether somebody reads by `async for`."""
        return self._waiting is not None

    def push(self, event: TokenEvent) -> None:
        """Hand over the next event; called by the engine, after the end without effect."""
        self.add(event)
        wake_readers([self])

    def add(self, event: TokenEvent) -> None:
        """As `push`, for an engine that hands many streams their events and calls `wake_readers` then."""
        if self.finish_reason is not None:
            return
        if event.token_id is not None:
            self.last_token_s = time.perf_counter()
            if self.first_token_s is None:
                self.first_token_s = self.last_token_s
            self.num_tokens += 1
        self.finish_reason = event.finish_reason
        self._events.put(event)

    def fail(self, error: SubsecondError) -> None:
        """End the stream by an error, which its reader will get after the tokens before it; called by the engine."""
        if self.finish_reason is None:
            self.finish_reason = "error"
            self._events.put(error)
            wake_readers([self])

    def cancel(self) -> None:
        """Ask the engine to end the request; without effect once it has ended."""
        if self.finish_reason is None:
            self._cancel(self.request_id)

    def __iter__(self) -> Generator[TokenEvent, None, None]:
        """Yield events up to the one with a finish reason; raises SubsecondError if the engine failed."""
        try:
            while not self._is_read:
                yield self._taken(self._events.get())
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[TokenEvent, None]:
        """As `__iter__`, without blocking the event loop."""
        import asyncio  # here because importing it would cost a command about 50 ms before its first token

        wake = asyncio.Event()
        self._waiting = asyncio.get_running_loop(), wake
        try:
            while not self._is_read:
                wake.clear()
                if self._events.empty():
                    await wake.wait()
                else:
                    yield self._taken(self._events.get())
        finally:
            self._waiting = None
            self.cancel()

    def _taken(self, event: TokenEvent | SubsecondError) -> TokenEvent:
        """Return the event, or raise the engine's error; after either the stream may be at its end."""
        if isinstance(event, SubsecondError):
            self._is_read = True
            raise event
        self._is_read = event.finish_reason is not None
        return event


def wake_readers(streams: Iterable[TokenStream]) -> None:
    """Wake the async readers of streams that have new events: once an event loop, since each time is a system call."""
    waiting: dict[AbstractEventLoop, list[Event]] = defaultdict(list)
    for stream in streams:
        if (reader := stream._waiting) is not None:
            loop, event = reader
            waiting[loop].append(event)
    for loop, events in waiting.items():
        with suppress(RuntimeError):  # the loop is closed, so nobody is left to wake
            loop.call_soon_threadsafe(_set_all, events)


def _set_all(events: list[Event]) -> None:
    for event in events:
        event.set()
