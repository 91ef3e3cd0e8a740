"""The tokens of one answer on their way from the engine's thread to one reader, threaded or async, with their times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from threading import Condition

from subsecond.core.errors import SubsecondError
from subsecond.engine.request import FinishReason, TokenEvent


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
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.start_s = time.perf_counter()
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._cancel = cancel
        self._events: deque[TokenEvent] = deque()
        self._error: SubsecondError | None = None
        self._changed = Condition()
        self._wake_reader: Callable[[], object] | None = None

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

    def push(self, event: TokenEvent) -> None:
        """Hand over the next event; called by the engine, after the end without effect."""
        now = time.perf_counter()
        with self._changed:
            if self.finish_reason is not None:
                return
            if event.token_id is not None:
                self.first_token_s = now if self.first_token_s is None else self.first_token_s
                self.last_token_s = now
                self.num_tokens += 1
            self.finish_reason = event.finish_reason
            self._events.append(event)
            self._notify()

    def fail(self, error: SubsecondError) -> None:
        """End the stream by an error, which its reader will get after the tokens before it; called by the engine."""
        with self._changed:
            if self.finish_reason is None:
                self.finish_reason = "error"
                self._error = error
                self._notify()

    def cancel(self) -> None:
        """Ask the engine to end the request; without effect once it has ended."""
        if self.finish_reason is None:
            self._cancel(self.request_id)

    def __iter__(self) -> Generator[TokenEvent, None, None]:
        """Yield events up to the one with a finish reason; raises SubsecondError if the engine failed."""
        try:
            while True:
                with self._changed:
                    while not self._events and self.finish_reason is None:
                        self._changed.wait()
                    event = self._next_event()
                if event is None:
                    return
                yield event
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[TokenEvent, None]:
        """As `__iter__`, without blocking the event loop."""
        import asyncio  # here because importing it would cost a command about 50 ms before its first token

        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        with self._changed:
            self._wake_reader = lambda: loop.call_soon_threadsafe(wake.set)
        try:
            while True:
                wake.clear()
                with self._changed:
                    is_waiting = not self._events and self.finish_reason is None
                    event = None if is_waiting else self._next_event()
                if is_waiting:
                    await wake.wait()
                elif event is None:
                    return
                else:
                    yield event
        finally:
            self._wake_reader = None
            self.cancel()

    def _next_event(self) -> TokenEvent | None:
        """Return the next event, or None after the last; raises the engine's error. The lock is held."""
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake_reader is not None:
            try:
                self._wake_reader()
            except RuntimeError:  # the reader's event loop is closed, so nobody is left to wake
                self._wake_reader = None
