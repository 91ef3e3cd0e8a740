"""Workloads are the sizes they say, and their prompts share what they say and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from subsecond.core.errors import InputError
from subsecond.measure.workload import WORKLOADS, workload

VOCABULARY = 32000


def num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with."""
    count = 0
    while len({tuple(prompt[: count + 1]) for prompt in prompts}) == 1:
        count += 1
    return count


def test_prompts_share_their_beginning_and_no_more() -> None:
    found = workload("shared-prefix").asks(3, "0", VOCABULARY)
    assert {(len(ask.prompt_ids), ask.num_new_tokens) for ask in found} == {(1024, 64)}
    assert num_shared([ask.prompt_ids for ask in found]) == 768
    again = workload("shared-prefix").asks(3, "1", VOCABULARY)
    assert num_shared([found[0].prompt_ids, again[0].prompt_ids]) == 768


def test_prompts_repeat_with_their_seed_alone() -> None:
    chat = workload("short-chat")
    assert chat.asks(2, "0", VOCABULARY) == chat.asks(2, "0", VOCABULARY)
    first, second = (chat.asks(2, seed, VOCABULARY) for seed in ("0", "1"))
    prompts = [ask.prompt_ids for ask in (*first, *second)]
    assert len(set(prompts)) == 4 and num_shared(prompts) == 0


@pytest.mark.parametrize("vocab_size", [2, 50, 1500, 200_000])
def test_ids_are_of_the_vocabulary(vocab_size: int) -> None:
    ids = workload("long-prompt").asks(1, "0", vocab_size)[0].prompt_ids
    assert min(ids) >= 0 and max(ids) < vocab_size


def test_a_mixture_has_the_same_kinds_in_every_repeat() -> None:
    sizes = [
        [(len(ask.prompt_ids), ask.num_new_tokens) for ask in WORKLOADS["mixed"].asks(40, seed, VOCABULARY)]
        for seed in ("0", "1")
    ]
    assert sizes[0] == sizes[1]
    count = Counter(sizes[0])
    assert len(count) == 4 and count.most_common(1)[0][0] == (128, 128)
    assert WORKLOADS["mixed"].max_context_tokens == 2080


def test_sizes_can_be_others() -> None:
    made = workload("shared-prefix").resized(512, 8, None)
    assert (made.prompt_tokens, made.output_tokens, made.shared_tokens) == (512, 8, 384)
    assert [found.resized(None, None, None) for found in WORKLOADS.values()] == list(WORKLOADS.values())


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("short-chat", (16, None, 16), "16 shared of 16 prompt tokens"),
        ("mixed", (16, None, None), "--prompt-tokens cannot be given with the workload mixed"),
        ("short", (None, None, None), "there is no workload 'short'; there are short-chat, "),
    ],
)
def test_what_does_not_fit_is_refused(name: str, sizes: tuple[int | None, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        workload(name).resized(*sizes)
