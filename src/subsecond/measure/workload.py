"""What is asked of whatever is measured: how long prompts and answers are, and what prompts share; sends nothing.

Prompts are token ids without meaning, drawn from a seed: speed does not depend on meaning, every target reads and
answers the same number of tokens, and none finds in its cache what an earlier repeat left there, unless the workload
says so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from subsecond.core.errors import InputError

FIRST_ID, NUM_IDS = 1000, 16000  # ordinary tokens of every large vocabulary
MAX_TOKENS = 10**7


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a prompt, and how many tokens shall be answered, whatever the model would like to say."""

    prompt_ids: tuple[int, ...]
    num_new_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one kind.

    shared_tokens  how many tokens all prompts begin with, the same in every repeat, as the instructions are that an
                   application sends with every request
    parts          for a mixture: workloads by name, each with its share of the requests; the sizes are then theirs
    """

    name: str
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int = 0
    parts: tuple[tuple[str, float], ...] = ()

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one request, prompt and answer."""
        if self.parts:
            return max(WORKLOADS[name].max_context_tokens for name, _ in self.parts)
        return self.prompt_tokens + self.output_tokens

    def asks(self, count: int, seed: str, vocab_size: int) -> list[Ask]:
        """As many requests, which share their beginning at most; `seed` tells repeats apart.

        Which kind of a mixture comes when does not depend on the seed, so that repeats can be compared.
        """
        rng = random.Random(f"kinds of {self.name}")
        return [self._kind(rng).ask(f"{self.name} {seed} {index}", vocab_size) for index in range(count)]

    def ask(self, seed: str, vocab_size: int) -> Ask:
        """One request."""
        prefix = random_ids(self.shared_tokens, f"prefix {self.name}", vocab_size)
        own = random_ids(self.prompt_tokens - self.shared_tokens, seed, vocab_size)
        return Ask(prefix + own, self.output_tokens)

    def resized(self, prompt_tokens: int | None, output_tokens: int | None, shared_tokens: int | None) -> Workload:
        """The same with other sizes; None leaves one as it is. InputError where they do not fit."""
        given = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "shared_tokens": shared_tokens}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if not changes:
            return self
        if self.parts:
            flags = ", ".join("--" + name.replace("_", "-") for name in changes)
            raise InputError(f"{flags} cannot be given with the workload {self.name}, whose sizes are those of others")
        if prompt_tokens is not None and shared_tokens is None:
            # as large a part of the prompt as before
            changes["shared_tokens"] = self.shared_tokens * prompt_tokens // self.prompt_tokens
        made = replace(self, **changes)
        if not 0 <= made.shared_tokens < made.prompt_tokens or made.output_tokens < 1:
            raise InputError(
                f"{made.shared_tokens} shared of {made.prompt_tokens} prompt tokens and {made.output_tokens} of the "
                "answer is not allowed; a prompt needs a token of its own, an answer at least one"
            )
        return made

    def _kind(self, rng: random.Random) -> Workload:
        if not self.parts:
            return self
        place, total = rng.random() * sum(share for _, share in self.parts), 0.0
        for name, share in self.parts:
            total += share
            if place < total:
                return WORKLOADS[name]
        return WORKLOADS[self.parts[-1][0]]


_PARTS = (("short-chat", 0.5), ("shared-prefix", 0.3), ("long-prompt", 0.1), ("long-answer", 0.1))
WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("short-chat", 128, 128),
        Workload("long-prompt", 2048, 32),
        Workload("long-answer", 64, 512),
        Workload("shared-prefix", 1024, 64, 768),
        Workload("mixed", 0, 0, parts=_PARTS),
    )
}


def workload(name: str) -> Workload:
    """The workload of that name; InputError with those that there are."""
    if name not in WORKLOADS:
        raise InputError(f"there is no workload {name[:100]!r}; there are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def random_ids(count: int, seed: str, vocab_size: int) -> tuple[int, ...]:
    """Token ids, the same for the same seed in every release of Python; small vocabularies give of their upper part."""
    first = min(FIRST_ID, vocab_size // 2)
    num_ids = min(NUM_IDS, vocab_size - first)
    rng = random.Random(seed)
    return tuple(first + int(rng.random() * num_ids) for _ in range(count))
