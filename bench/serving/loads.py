"""What clients ask of a server: how long prompts and answers are and what prompts share; sends nothing.

Prompts are token ids without meaning, drawn from a seed, so that all servers read and answer the same number of tokens
and none finds in its cache what an earlier round left there, unless the load says so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.timing import FIRST_ID, NUM_IDS

Prompt = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one kind.

    num_shared_tokens  how many tokens all prompts begin with
    is_prefix_fresh    whether that beginning is another one in every sample, or one that servers have seen before, as
                       the instructions are that an application sends with every request
    """

    name: str
    num_prompt_tokens: int
    num_new_tokens: int
    num_shared_tokens: int = 0
    is_prefix_fresh: bool = False

    @property
    def num_context_tokens(self) -> int:
        """Tokens of one request, prompt and answer."""
        return self.num_prompt_tokens + self.num_new_tokens

    def prompts(self, count: int, seed: str) -> list[Prompt]:
        """As many prompts, which share their beginning at most; `seed` tells samples apart."""
        prefix_seed = f"{self.name} {seed}" if self.is_prefix_fresh else self.name
        prefix = random_ids(self.num_shared_tokens, f"prefix {prefix_seed}")
        num_own = self.num_prompt_tokens - self.num_shared_tokens
        return [prefix + random_ids(num_own, f"{self.name} {seed} {index}") for index in range(count)]


LOADS: Mapping[str, Load] = {
    "short": Load("short", 128, 128),
    "shared": Load("shared", 1024, 64, 768),
    "shared-fresh": Load("shared-fresh", 1024, 64, 768, is_prefix_fresh=True),
    "smoke": Load("smoke", 80, 4, 64),  # whether everything runs
}


def random_ids(count: int, seed: str) -> Prompt:
    """Ordinary tokens of every vocabulary, the same for the same seed in every release of Python."""
    rng = random.Random(seed)
    return tuple(FIRST_ID + int(rng.random() * NUM_IDS) for _ in range(count))


def num_requests(num_streams: int) -> int:
    """How many requests each of the streams makes in a sample; few streams make more, for the sake of percentiles."""
    return max(2, 4 // num_streams)


def prompts_of_streams(load: Load, num_streams: int, seed: str, each: int | None = None) -> list[list[Prompt]]:
    """For each stream the prompts that it sends one after the other: `each` of them, or as many as `num_requests`."""
    each = num_requests(num_streams) if each is None else each
    prompts = load.prompts(num_streams * each, f"{num_streams} {seed}")
    return [prompts[start : start + each] for start in range(0, len(prompts), each)]


def completion_body(model: str, prompt: Sequence[int], num_new_tokens: int) -> bytes:
    """The body of a request for exactly that many tokens, the likeliest each time, streamed."""
    return json.dumps(
        {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": num_new_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        separators=(",", ":"),
    ).encode()
