"""Whether the lists of a text's log-probabilities stay side by side, whatever its tokens look like."""

from __future__ import annotations

from typing import Any, cast

import pytest

from subsecond.engine.request import PromptLogprobs
from subsecond.engine.text import TokenLogprobs
from subsecond.models.tokenizer import Tokenizer
from subsecond.serve.text_logprobs import LEAST_LOGPROB, TextLogprobs, echoed_text, joined

INFINITE = float("inf")


class Pieces:
    """A tokenizer whose token ids are places in a list of bytes; 0 begins a text."""

    bos_id = 0
    bos_token = "<s>"
    strips_first_space = False
    parts = (b"<s>", b"say", b" ", b"\xe6", b"\x97\xa5", b"a", b"\xe6\x97\xa5", b"a")

    def token_bytes(self, token_id: int) -> bytes:
        return self.parts[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id == 0

    def decode(self, token_ids: Any, *, skip_special: bool = True) -> str:
        return b"".join(self.parts[each] for each in token_ids if each or not skip_special).decode("utf-8", "replace")


TOKENIZER = cast(Tokenizer, Pieces())


def prompt_logprobs(count: int) -> list[PromptLogprobs]:
    return [PromptLogprobs(-1.0 - place, ((5, -0.5),)) for place in range(count)]


def test_a_token_put_before_a_text_is_no_part_of_it() -> None:
    lists = TextLogprobs(TOKENIZER).prompt("say 日", (0, 1, 2, 3, 4), prompt_logprobs(4))
    assert lists["tokens"] == ["<s>", "say", " ", "bytes:\\xe6", "bytes:\\x97\\xa5"]
    assert lists["text_offset"] == [0, 0, 3, 4, 4]
    assert lists["token_logprobs"] == [None, -1.0, -2.0, -3.0, -4.0]
    assert lists["top_logprobs"][0] is None
    assert lists["top_logprobs"][1] == {"a": -0.5, "say": -1.0}


def test_control_tokens_of_ids_are_spelled_out() -> None:
    assert echoed_text((0, 1), TOKENIZER) == "<s>say"
    assert TextLogprobs(TOKENIZER).prompt((0, 1), (0, 1), prompt_logprobs(1))["text_offset"] == [0, 3]
    assert echoed_text("<s>say", TOKENIZER) == "<s>say"
    assert TextLogprobs(TOKENIZER).prompt("<s>say", (0, 1), prompt_logprobs(1))["text_offset"] == [0, 3]


def test_an_answer_goes_on_where_its_prompt_ends() -> None:
    writer = TextLogprobs(TOKENIZER)
    echoed = writer.prompt("say ", (0, 1, 2), prompt_logprobs(2))
    first = writer.answer([TokenLogprobs(6, -0.1, ()), TokenLogprobs(5, -0.2, ())])
    second = writer.answer([TokenLogprobs(0, -0.3, ())])
    assert joined(joined(echoed, first), second)["text_offset"] == [0, 0, 3, 4, 5, 6]
    assert second["tokens"] == ["<s>"]


def test_of_tokens_with_equal_texts_the_likelier_one_counts() -> None:
    lists = TextLogprobs(TOKENIZER).answer([TokenLogprobs(7, -3.0, ((5, -0.1), (1, -2.0)))])
    assert lists["top_logprobs"] == [{"a": -0.1, "say": -2.0}]


@pytest.mark.parametrize("logprob", [-INFINITE, -1e30])
def test_what_is_impossible_has_a_number(logprob: float) -> None:
    lists = TextLogprobs(TOKENIZER).answer([TokenLogprobs(1, logprob, ((5, -0.1), (1, logprob)))])
    assert lists["token_logprobs"] == [LEAST_LOGPROB]
    assert lists["top_logprobs"] == [{"a": -0.1, "say": LEAST_LOGPROB}]
