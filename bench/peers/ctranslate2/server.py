"""Serves CTranslate2 over HTTP, one request after the other; runs in an environment of its own.

Run: python -m bench.peers.ctranslate2.server FOLDER --port N [--threads N]
Its generator takes whole batches and nothing beside them, so that requests wait for each other; tokens are sent as it
reports them. Always the likeliest token. It speaks what bench.peers.http_front takes.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctranslate2

from bench.peers.http_front import Front, Handle, NewTokens, serve

POLL_S = 0.02  # between looks for requests while nothing new has come


@dataclass(slots=True)
class Generation:
    """One request, and the tokens of it that nobody has read yet."""

    prompt: list[str]
    num_tokens: int
    is_cancelled: bool = False
    unread: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    def can_read(self) -> bool:
        return not self.unread.empty()

    def read(self) -> Mapping[int, Any]:
        found = []
        while not self.unread.empty():
            found.append(self.unread.get())
        return {0: NewTokens(found)}

    def cancel(self) -> None:
        self.is_cancelled = True


class Pipeline:
    """A thread that runs requests in the order in which they came, each to its end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._generator = ctranslate2.Generator(
            options.model, device="cpu", compute_type="int8", inter_threads=1, intra_threads=options.threads
        )
        self._texts = json.loads((Path(options.model) / "vocabulary.json").read_text(encoding="utf-8"))
        self._waiting: queue.SimpleQueue[Generation] = queue.SimpleQueue()
        self._has_news = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def add(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Handle:
        generation = Generation([self._texts[token_id] for token_id in prompt_ids], num_new_tokens)
        self._waiting.put(generation)
        return generation

    def step(self) -> None:
        """Wait for a token, or long enough for it to be worth looking for requests."""
        if self._has_news.wait(POLL_S):
            self._has_news.clear()

    def _work(self) -> None:
        while True:
            current = self._waiting.get()
            if not current.is_cancelled:
                self._run(current)

    def _run(self, current: Generation) -> None:
        def note(result: ctranslate2.GenerationStepResult) -> bool:
            current.unread.put(result.token_id)
            self._has_news.set()
            return current.is_cancelled

        self._generator.generate_batch(
            [current.prompt],
            max_length=current.num_tokens,
            min_length=current.num_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=note,
        )


def main() -> None:
    """Load, then serve."""
    parser = argparse.ArgumentParser(description="Serve a model by CTranslate2.")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    pipeline = Pipeline(options)
    serve(pipeline, Front(options.port, options.model))


if __name__ == "__main__":
    main()
