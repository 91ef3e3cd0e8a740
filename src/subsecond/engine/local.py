"""The engine on this machine: one backend, one thread that runs steps while there is work and sleeps otherwise."""

from __future__ import annotations

import atexit
import secrets
import time
from collections import deque
from threading import Condition, Thread, current_thread

from subsecond.backends.protocol import Backend
from subsecond.core.errors import ContextLengthError, InputError, OverloadedError, SubsecondError
from subsecond.engine.blocks import BlockAllocator
from subsecond.engine.protocol import EngineStats
from subsecond.engine.request import Request
from subsecond.engine.scheduler import Scheduler, Sequence
from subsecond.engine.step_loop import StepLoop, failure_of
from subsecond.engine.stream import TokenStream
from subsecond.engine.waker import ReaderWaker

NUM_SEED_BITS = 48  # drawn seeds are exact as numbers of JSON, which many readers hold as floats


class LocalEngine:
    """Answers requests with one backend, which it uses alone from its own thread until it is closed.

    context_length  most tokens a request may have, prompt and answer together
    max_rows        most rows a step; None takes all that the backend allows
    prefix_cache    whether blocks computed for one request may serve another

    The thread starts with the first request. A request's tokens depend on it and its seed alone.
    """

    def __init__(
        self, backend: Backend, *, context_length: int, max_rows: int | None = None, prefix_cache: bool = True
    ) -> None:
        if context_length < 2:
            raise InputError(f"context_length={context_length} holds no prompt and answer; give at least 2")
        if max_rows is not None and not 1 <= max_rows <= backend.max_rows:
            raise InputError(f"max_rows={max_rows} is not allowed; give 1 to {backend.max_rows}, the backend's limit")
        self._backend = backend
        self._context_length = context_length
        self._allocator = BlockAllocator(backend.num_blocks, backend.block_tokens, variant=backend.variant)
        self._has_prefix_cache = prefix_cache
        self._scheduler = Scheduler(self._allocator, max_rows or backend.max_rows)
        self._waker = ReaderWaker()
        self._loop = StepLoop(backend, self._scheduler, self._forget, self._waker.wake)
        self._changed = Condition()
        self._submitted: deque[tuple[Sequence, TokenStream]] = deque()
        self._cancelled: deque[TokenStream] = deque()
        self._streams: dict[str, TokenStream] = {}
        self._thread: Thread | None = None
        self._is_closing = False
        self._failure: Exception | None = None

    @property
    def max_tokens(self) -> int:
        """Most tokens of one request, prompt and answer: the context length, or less if the pool cannot hold it."""
        return min(self._context_length, self._backend.num_blocks * self._backend.block_tokens)

    def submit(self, request: Request) -> TokenStream:
        """Queue a request and return its stream at once; raises InputError if it can never be answered."""
        max_length = self._max_length(request)
        self._check_ids(request)
        seed = request.params.seed if request.params.seed is not None else secrets.randbits(NUM_SEED_BITS)
        stream = TokenStream(
            request.id,
            seed=seed,
            num_prompt_tokens=len(request.prompt_ids),
            variant=self._backend.variant,
            cancel=self.cancel,
        )
        sequence = Sequence(request, seed, max_length, self._salt(request))
        if request.deadline_ms is not None:
            sequence.deadline_s = stream.start_s + request.deadline_ms / 1e3
        with self._changed:
            self._check_open()
            self._check_deadline(request)
            if request.id in self._streams:
                raise InputError(f"id={request.id!r} belongs to a live request; give each its own")
            self._streams[request.id] = stream
            self._submitted.append((sequence, stream))
            if self._thread is None:
                self._thread = Thread(target=self._run, name="subsecond-engine", daemon=True)
                self._thread.start()
                # the interpreter ends daemon threads by force, which a step inside native code does not survive
                atexit.register(self.close)
            self._changed.notify()
        return stream

    def cancel(self, request_id: str) -> None:
        """End a request within a step; its stream ends with "cancelled". An unknown or finished one is left alone."""
        with self._changed:
            if request_id in self._streams:
                self._cancelled.append(self._streams[request_id])
                self._changed.notify()

    def stats(self) -> EngineStats:
        """Return what the engine is doing; `last_error` tells what the last failed step raised."""
        counts = self._loop.counts
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting) + len(self._submitted),
            num_blocks=self._allocator.num_blocks,
            num_free_blocks=self._allocator.num_free,
            num_steps=counts.num_steps,
            num_rows=counts.num_rows,
            num_prompt_tokens=counts.num_prompt_tokens,
            num_cached_tokens=counts.num_cached_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_failed_steps=counts.num_failed_steps,
            step_ms=None if (started := self._loop.step_started_s) is None else (time.perf_counter() - started) * 1e3,
            is_alive=self._failure is None and not self._is_closing,
            last_error=repr(self._failure) if self._failure is not None else counts.last_error,
        )

    def close(self) -> None:
        """Cancel what is live and wait for the thread; the backend stays open. May be called again."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        atexit.unregister(self.close)
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join()
        self._waker.close()
        self._loop.close()

    def _run(self) -> None:
        try:
            while self._take_orders():
                if self._loop.has_work:
                    self._loop.step()
            self._loop.cancel_all()
        except Exception as error:
            # a failed step does not come here, so this is a bug: nobody may wait for an engine that stands still
            with self._changed:
                self._failure = error
                streams = list(self._streams.values())
                self._streams.clear()
            for stream in streams:
                stream.fail(failure_of(error))

    def _take_orders(self) -> bool:
        """Wait until there is something to do and take up what was submitted and cancelled; False once closing."""
        with self._changed:
            while not (self._loop.has_work or self._is_closing or self._submitted or self._cancelled):
                self._changed.wait()
            # with what was cancelled before, so that a request never has a step beside one that was given up for it
            self._accept_submitted()
            # one by one, because a stream that the garbage collector finds may be cancelled at any moment
            cancelled = [self._cancelled.popleft() for _ in range(len(self._cancelled))]
        for stream in cancelled:
            self._loop.cancel(stream)
        return not self._is_closing

    def _accept_submitted(self) -> None:
        while self._submitted:
            self._loop.add(*self._submitted.popleft())

    def _forget(self, request_id: str) -> None:
        with self._changed:
            del self._streams[request_id]

    def _check_open(self) -> None:
        if self._failure is not None:
            raise SubsecondError(f"the engine stopped working: {self._failure!r}; load the model again")
        if self._is_closing:
            raise SubsecondError("the engine is closed; load the model again")

    def _max_length(self, request: Request) -> int:
        """Return the most tokens the request may come to; raises InputError if they can never fit."""
        num_prompt, wanted = len(request.prompt_ids), request.params.max_tokens
        limit = self.max_tokens
        name = "context length" if limit == self._context_length else "key/value memory"
        if num_prompt > limit or (num_prompt == limit and wanted != 0):
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens, but the {name} is {limit} tokens for prompt and answer; "
                "give a shorter one"
            )
        if wanted is None:
            return limit
        if num_prompt + wanted > limit:
            raise ContextLengthError(
                f"prompt ({num_prompt} tokens) and max_tokens={wanted} exceed the {name} of {limit} tokens; "
                f"give max_tokens of at most {limit - num_prompt} or a shorter prompt"
            )
        return num_prompt + wanted

    def _salt(self, request: Request) -> str:
        """What keeps cached blocks apart: the request's own salt, or without a prefix cache its group."""
        if self._has_prefix_cache:
            return request.salt
        return f"request {request.id}" if request.group is None else f"group {request.group} {request.salt}"

    def _check_deadline(self, request: Request) -> None:
        """Raise OverloadedError if the first token cannot come in time, as far as measured times tell."""
        if request.deadline_ms is None:
            return
        ahead = [*self._scheduler.running, *self._scheduler.waiting, *(sequence for sequence, _ in self._submitted)]
        num_rows = sum(item.num_missing for item in ahead if item.request.priority <= request.priority)
        num_answers = sum(item.num_missing == 1 for item in self._scheduler.running)
        ttft_ms = self._scheduler.pacer.ttft_ms(num_rows + len(request.prompt_ids), num_answers)
        if ttft_ms is not None and ttft_ms > request.deadline_ms:
            if not ahead:
                self._scheduler.pacer.doubt()
            raise OverloadedError(
                f"the first token would take about {ttft_ms:.0f} ms, but deadline_ms={request.deadline_ms:g}; "
                "ask again later, or give a later deadline or a shorter prompt",
                retry_after_s=(ttft_ms - request.deadline_ms) / 1e3,
            )

    def _check_ids(self, request: Request) -> None:
        """Raise InputError if a token id is not in the vocabulary."""
        size = self._backend.vocab_size
        for name, ids in (
            ("prompt", request.prompt_ids),
            ("logit_bias", request.params.logit_bias),
            ("stop_token_ids", request.params.stop_token_ids),
        ):
            for token_id in ids:
                if not 0 <= token_id < size:
                    raise InputError(f"{name} has token id {token_id}; the vocabulary has ids 0 to {size - 1}")
