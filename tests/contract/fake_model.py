"""A model that answers every prompt alike, in place of one with weights."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from subsecond.core.errors import ContextLengthError, InputError
from subsecond.engine.text import Completion, TextChunk, Timing, Usage

WORDS = ("Hello", " wide", " world")


class FakeStream:
    """An answer of three words; the first `num_reasoning` of them are reasoning."""

    def __init__(self, fail_after: int | None = None, num_reasoning: int = 0) -> None:
        self._fail_after = fail_after
        self._num_reasoning = num_reasoning
        self._is_cancelled = False
        self.tokens = SimpleNamespace(
            ttft_ms=12.4, tpot_ms=4.0, num_prompt_tokens=5, cached_tokens=2, num_tokens=len(WORDS)
        )

    def __iter__(self) -> Iterator[TextChunk]:
        for index, word in enumerate(WORDS):
            if index == self._fail_after:
                raise KeyboardInterrupt
            text, reasoning = ("", word) if index < self._num_reasoning else (word, "")
            yield TextChunk(text, (index,), "stop" if index == len(WORDS) - 1 else None, (), reasoning)

    def cancel(self) -> None:
        self._is_cancelled = True

    def collect(self) -> Completion:
        if self._fail_after is not None and not self._is_cancelled:
            raise KeyboardInterrupt
        return Completion(
            text="".join(WORDS[self._num_reasoning : self._fail_after]),
            reasoning="".join(WORDS[: self._num_reasoning]),
            token_ids=(0, 1, 2)[: self._fail_after],
            finish_reason="cancelled" if self._is_cancelled else "stop",
            logprobs=(),
            usage=Usage(5, 3, 2),
            timing=Timing(80.0, 12.4, 4.0, 20.40004),
            seed=7,
            variant="fake",
        )


class FakeModel:
    """Answers every prompt alike and remembers what it was asked."""

    load_ms = 80.0

    def __init__(self) -> None:
        self.checkpoint = SimpleNamespace(has_chat_template=True)
        self.prompts: list[Any] = []
        self.settings: dict[str, Any] = {}
        self.loaded: tuple[Any, dict[str, Any]] = (None, {})
        self.fail_after: int | None = None
        self.num_reasoning = 0

    def stream(self, prompt: Any, *, raw: bool = False, **settings: Any) -> FakeStream:
        if prompt == "refused" or prompt[-1] == {"role": "user", "content": "refused"}:
            raise InputError("this prompt is refused")
        if prompt[-1] == {"role": "user", "content": "interrupted"}:
            raise KeyboardInterrupt
        if prompt[-1] == {"role": "user", "content": "long"}:
            raise ContextLengthError("the prompt has 9 tokens, but the context length is 8 tokens")
        self.prompts.append(("raw", prompt) if raw else prompt)
        self.settings = settings
        return FakeStream(self.fail_after, self.num_reasoning)

    def generate(self, prompt: Any, **settings: Any) -> Completion:
        return self.stream(prompt, **settings).collect()

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def turns(*texts: str, answer: str = "Hello wide world") -> list[dict[str, str]]:
    """The messages that stand before the answer to the last text."""
    messages = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return messages[:-1]
