"""Log-likelihoods of choices and greedy answers, compared with one plain run of each whole sequence."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.backends.batch import Float32
from subsecond.core.errors import InputError
from subsecond.measure.evaluation import forward_windows
from subsecond.measure.task_scores import choice_loglikelihoods, encode_pair, greedy_answer
from subsecond.models.tokenizer import Tokenizer
from tests import byte_vocabulary
from tests.unit.engine.fake_backend import FakeBackend

VOCAB_SIZE = len(byte_vocabulary.token_texts(byte_vocabulary.metadata()))


def make_tokenizer(**changes: object) -> Tokenizer:
    return Tokenizer.from_gguf(byte_vocabulary.metadata(**changes))  # type: ignore[arg-type]


def logprobs_of(token_ids: list[int]) -> Float32:
    """Log-probabilities [tokens, vocab] after each token, from one run of the whole."""
    window = np.array([token_ids], np.int32)
    logits = next(forward_windows(FakeBackend(vocab_size=VOCAB_SIZE), window)).astype(np.float64)
    found: Float32 = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


@pytest.mark.parametrize("max_rows", [1, 3, 512])
@pytest.mark.parametrize("context", ["Is the sky blue? ", "a", ""])
def test_each_choice_scores_as_if_it_were_run_alone(context: str, max_rows: int) -> None:
    tokenizer = make_tokenizer()
    choices = [" yes, it is", " n", " the hello", " hello there, this is long"]
    backend = FakeBackend(vocab_size=VOCAB_SIZE, max_rows=max_rows)
    found = choice_loglikelihoods(backend, tokenizer, context, choices)
    for choice, given in zip(choices, found, strict=True):
        context_ids, ids = encode_pair(tokenizer, context, choice)
        logprobs = logprobs_of([*context_ids, *ids])
        places = np.arange(len(context_ids) - 1, len(context_ids) + len(ids) - 1)
        assert given == pytest.approx(float(logprobs[places, ids].sum()), rel=1e-9)


def test_white_space_at_the_end_of_the_context_belongs_to_the_continuation() -> None:
    tokenizer = make_tokenizer()
    assert encode_pair(tokenizer, "say ", "the") == encode_pair(tokenizer, "say", " the")
    context_ids, ids = encode_pair(tokenizer, "say", " the")
    assert tokenizer.decode(context_ids) == "say" and tokenizer.decode(ids) == " the"


def test_what_merges_with_the_context_is_still_scored() -> None:
    tokenizer = make_tokenizer()
    assert len(tokenizer.encode("hell")) == len(tokenizer.encode("hello")) == 1
    assert encode_pair(tokenizer, "hell", "o") == (tokenizer.encode("hell"), tokenizer.encode("o"))


def test_the_begin_of_text_stands_first_where_the_model_expects_it() -> None:
    plain, begun = make_tokenizer(), make_tokenizer(add_bos_token=True)
    assert encode_pair(begun, "ab", "c")[0] == [begun.bos_id, *encode_pair(plain, "ab", "c")[0]]
    assert encode_pair(plain, "", "c")[0] == encode_pair(begun, "", "c")[0] == [begun.bos_id]
    context_ids, _ = encode_pair(begun, "<|start|>ab", "c", allow_special=True)
    assert context_ids.count(int(begun.bos_id or 0)) == 1


def test_a_greedy_answer_takes_the_most_likely_tokens_and_ends_at_the_end() -> None:
    prompt = [5, 9, 2, 7, 7]
    expected: list[int] = []
    for _ in range(6):
        window = np.array([[*prompt, *expected]], np.int32)
        expected.append(int(next(forward_windows(FakeBackend(), window))[-1].argmax()))
    assert greedy_answer(FakeBackend(max_rows=2), prompt, 6, ()) == expected
    place = expected.index(expected[3])
    assert greedy_answer(FakeBackend(), prompt, 6, {expected[3]}) == expected[:place]


@pytest.mark.parametrize("num_right", [0, 1, 3, 6])
@pytest.mark.parametrize("max_rows", [2, 512])
def test_a_draft_changes_nothing_but_the_number_of_steps(num_right: int, max_rows: int) -> None:
    prompt = [5, 9, 2, 7, 7]
    expected = greedy_answer(FakeBackend(), prompt, 6, ())
    wrong = [(token_id + 1) % 50 for token_id in expected]
    draft = [*expected[:num_right], *wrong[num_right:]]
    backend = FakeBackend(max_rows=max_rows)
    assert greedy_answer(backend, prompt, 6, (), draft) == expected
    assert greedy_answer(backend, prompt, 4, (), draft) == expected[:4]
    assert greedy_answer(backend, prompt, 6, {expected[4]}, draft) == expected[: expected.index(expected[4])]
    assert greedy_answer(backend, prompt, 6, (), draft[:2]) == expected
    # an answer that ends goes on where the other model ended too early, and ends where it went on
    assert greedy_answer(backend, prompt, 6, {expected[5]}, expected[:5]) == expected[: expected.index(expected[5])]
    counted = FakeBackend()
    greedy_answer(counted, prompt, 6, (), draft)
    assert len(counted.num_rows) == 2 + max(0, 5 - num_right)


def test_a_question_that_does_not_fit_is_refused() -> None:
    backend = FakeBackend(vocab_size=VOCAB_SIZE, num_blocks=2)
    with pytest.raises(InputError, match="give --context-tokens of at least"):
        choice_loglikelihoods(backend, make_tokenizer(), "a long question", [" a", " b"])
    with pytest.raises(InputError, match="have 12 tokens, but the key/value memory holds 8"):
        greedy_answer(backend, [1, 2], 10, ())
