"""Bounds on the work of the server and of one request, checked before anything is done for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from subsecond.core.errors import OverloadedError
from subsecond.serve.errors import FieldError
from subsecond.serve.settings import ServeSettings

RETRY_AFTER_S = 1.0


class Limits:
    """Counts requests in progress and refuses what is beyond the settings. Used on the event loop alone."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.num_requests = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of the places for requests; OverloadedError when there is none. The gate does it for each POST."""
        if self.num_requests >= self._settings.max_requests:
            raise OverloadedError(
                f"{self.num_requests} requests are in progress, the most at once here; ask again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

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
