"""Bounds on the work of the server and of one request, checked before anything is done for it."""

from __future__ import annotations

from subsecond.core.errors import OverloadedError
from subsecond.serve.errors import BodiesOverloadedError, FieldError
from subsecond.serve.settings import ServeSettings

RETRY_AFTER_S = 1.0
SMALL_BODY_BYTES = 2**16


class Limits:
    """Counts what requests hold and refuses what is beyond the settings. Used on the event loop alone.

    num_requests    whose bodies have been read, running and waiting
    num_body_bytes  of all bodies held, the first SMALL_BODY_BYTES of each aside
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.num_requests = 0
        self.num_body_bytes = 0

    def holding(self) -> Holding:
        """Return the record of what one request holds, to be closed at its end."""
        return Holding(self, self._settings)

    def check_samples(self, num_samples: int, max_tokens: int | None, context_tokens: int, *, name: str = "n") -> None:
        """FieldError if the answers to one request may have more tokens together, or are more, than is allowed.

        `context_tokens` stands for an absent max_tokens; `name` is what the API calls the number of answers.
        """
        settings = self._settings
        if not 1 <= num_samples <= settings.max_samples:
            raise FieldError(f"{name}={num_samples} is not allowed; give 1 to {settings.max_samples}", param=name)
        num_tokens = num_samples * (context_tokens if max_tokens is None else max_tokens)
        if num_samples > 1 and num_tokens > settings.max_answer_tokens:
            raise FieldError(
                f"{name}={num_samples} answers of up to {num_tokens // num_samples} tokens are {num_tokens} tokens; "
                f"{settings.max_answer_tokens} are allowed for one request. Give a smaller {name} or max_tokens",
                param=name,
            )

    def check_inputs(self, num_inputs: int, *, name: str = "input") -> None:
        """FieldError if one request has more texts or prompts than is allowed."""
        if not 1 <= num_inputs <= self._settings.max_inputs:
            raise FieldError(f"{name} has {num_inputs} entries; give 1 to {self._settings.max_inputs}", param=name)


class Holding:
    """What one request holds. A place is taken only once its body is here, so that slow senders keep nobody out."""

    def __init__(self, limits: Limits, settings: ServeSettings) -> None:
        self._limits = limits
        self._settings = settings
        self._num_bytes = 0
        self._num_counted_bytes = 0
        self._has_place = False

    def add_bytes(self, num_bytes: int) -> None:
        """Note bytes of the body; OverloadedError if all large bodies together are too large."""
        self._num_bytes += num_bytes
        counted = max(0, self._num_bytes - SMALL_BODY_BYTES)
        more = counted - self._num_counted_bytes
        if more and self._limits.num_body_bytes + more > self._settings.max_total_body_bytes:
            raise BodiesOverloadedError(
                "the large bodies of other requests leave no memory for this one; ask again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_counted_bytes = counted
        self._limits.num_body_bytes += more

    def take_place(self) -> None:
        """Take one of the places for requests; OverloadedError when there is none."""
        limits = self._limits
        if limits.num_requests >= self._settings.max_requests:
            raise OverloadedError(
                f"{limits.num_requests} requests are in progress, the most at once here; ask again later",
                retry_after_s=RETRY_AFTER_S,
            )
        assert not self._has_place, "a request reads its body once"
        limits.num_requests += 1
        self._has_place = True

    def close(self) -> None:
        """Give back everything."""
        self._limits.num_requests -= self._has_place
        self._limits.num_body_bytes -= self._num_counted_bytes
        self._has_place, self._num_counted_bytes = False, 0
