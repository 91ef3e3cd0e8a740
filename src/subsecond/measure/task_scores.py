"""Asks a backend the questions of tasks: log-likelihoods of choices, greedy free answers; judges no answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from subsecond.backends.protocol import Backend
from subsecond.core.errors import InputError
from subsecond.measure.evaluation import window_batch
from subsecond.measure.quality import token_nll
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.prompt_encoder import PromptEncoder
from subsecond.models.reasoning import split_reasoning
from subsecond.models.tokenizer import Tokenizer


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str, *, allow_special: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what continues it, as lm-evaluation-harness splits them.

    White space at the end of the context belongs to the continuation; both are encoded together and the tokens after
    the context's own number of tokens are the continuation. A token that begins texts stands first where the model
    expects one, also where the context is empty.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
        return [first_id(tokenizer)], tokenizer.encode(continuation, allow_special=allow_special)
    context_ids = tokenizer.encode(stripped, allow_special=allow_special)
    whole = tokenizer.encode(stripped + continuation, allow_special=allow_special)
    # what follows may merge with the context into no more tokens than the context alone has
    following = whole[len(context_ids) :] or tokenizer.encode(continuation, is_continuation=True)
    return with_begin(tokenizer, context_ids), following


def first_id(tokenizer: Tokenizer) -> int:
    """The token that stands before a text without context: the one that begins texts, else one that ends them."""
    first = tokenizer.bos_id if tokenizer.bos_id is not None else next(iter(tokenizer.eos_ids), None)
    if first is None:
        raise InputError("the context is empty, and the vocabulary has no token that begins a text; give a context")
    return first


def with_begin(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
    """The tokens of a text after the one that begins texts, where the model expects that and it is not there yet."""
    bos_id = tokenizer.bos_id
    is_missing = tokenizer.add_bos and bos_id is not None and list(token_ids[:1]) != [bos_id]
    return [bos_id, *token_ids] if is_missing and bos_id is not None else list(token_ids)


def choice_loglikelihoods(backend: Backend, tokenizer: Tokenizer, context: str, choices: Sequence[str]) -> list[float]:
    """Sum of the log-probabilities, in nats, of each choice's tokens after the context.

    The context is computed once. Nobody else may use the backend's blocks meanwhile; a question that does not fit into
    them is an InputError.
    """
    pairs = [encode_pair(tokenizer, context, choice) for choice in choices]
    context_ids = pairs[0][0]
    longest = len(context_ids) + max(len(ids) for _, ids in pairs)
    num_blocks = _num_blocks(backend, longest)
    # what follows the context is one distribution for all choices
    _read(backend, context_ids[:-1], num_blocks)
    last = len(context_ids) - 1
    following = backend.forward(window_batch(np.array(context_ids, np.int32), last, last + 1, num_blocks)).copy()
    found = []
    for _, ids in pairs:
        sequence = np.array([*context_ids, *ids], np.int32)
        total = -float(token_nll(following, sequence[last + 1 : last + 2])[0])
        for start in range(last + 1, len(sequence) - 1, backend.max_rows):
            end = min(start + backend.max_rows, len(sequence) - 1)
            logits = backend.forward(window_batch(sequence, start, end, num_blocks))
            total -= float(token_nll(logits, sequence[start + 1 : end + 1]).sum())
        found.append(total)
    return found


def greedy_answer(
    backend: Backend,
    prompt_ids: Sequence[int],
    max_tokens: int,
    eos_ids: Collection[int],
    draft: Sequence[int] = (),
) -> list[int]:
    """The most likely tokens one after the other up to an end-of-text token, which is left out; lowest id on a tie.

    `draft` is a guess at the answer, such as another model's: what of it is right costs one step and no more. It does
    not change the answer.
    """
    num_blocks = _num_blocks(backend, len(prompt_ids) + max_tokens)
    first = len(prompt_ids) - 1
    _read(backend, prompt_ids[:-1], num_blocks)
    sequence = np.array([*prompt_ids, *draft[:max_tokens], *[0] * (max_tokens - len(draft))], np.int32)
    num_drafted = min(len(draft), max_tokens)
    chosen: list[int] = []
    for start in range(first, first + num_drafted + 1, backend.max_rows):
        end = min(start + backend.max_rows, first + num_drafted + 1)
        logits = backend.forward(window_batch(sequence, start, end, num_blocks))
        chosen += [int(token_id) for token_id in logits.argmax(axis=1)]
    num_right = next((i for i in range(num_drafted) if chosen[i] != draft[i] or chosen[i] in eos_ids), num_drafted)
    answer, token_id = [int(each) for each in draft[:num_right]], chosen[num_right]
    while len(answer) < max_tokens and token_id not in eos_ids:
        answer.append(token_id)
        if len(answer) < max_tokens:
            place = first + len(answer)
            sequence[place] = token_id
            token_id = int(np.argmax(backend.forward(window_batch(sequence, place, place + 1, num_blocks))[0]))
    return answer


class Answerer:
    """Turns questions into prompts of one model and tokens into answers, without reasoning where it allows that."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._prompts = PromptEncoder(checkpoint)

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of a question, by the chat template where there is one."""
        try:
            return self._prompts.encode(question, enable_thinking=False)
        except InputError:  # the template has no switch for reasoning, or there is none
            return self._prompts.encode(question)

    def answer_ids(self, backend: Backend, question: str, max_tokens: int, draft: Sequence[int] = ()) -> list[int]:
        """The tokens that the backend answers greedily; `draft` as in `greedy_answer`."""
        return greedy_answer(backend, self.prompt_ids(question), max_tokens, self._tokenizer.eos_ids, draft)

    def text(self, token_ids: Sequence[int]) -> str:
        """The answer that the tokens are, without the reasoning before it."""
        markers = self._prompts.markers
        # markers of reasoning may be control tokens
        whole = self._tokenizer.decode(token_ids, skip_special=markers is None)
        parts = split_reasoning(whole, markers) if markers is not None else None
        return (parts[1] if parts else self._tokenizer.decode(token_ids)).strip()


def _read(backend: Backend, token_ids: Sequence[int], num_blocks: int) -> None:
    """Compute keys and values of the tokens, whose logits nobody needs."""
    ids = np.array(token_ids, np.int32)
    for start in range(0, len(ids), backend.max_rows):
        end = min(start + backend.max_rows, len(ids))
        batch = window_batch(ids, start, end, num_blocks)
        backend.forward(replace(batch, logits_rows=batch.logits_rows[:0]))


def _num_blocks(backend: Backend, num_tokens: int) -> int:
    num_blocks = -(-num_tokens // backend.block_tokens)
    if num_blocks > backend.num_blocks:
        raise InputError(
            f"a question and its answer have {num_tokens} tokens, but the key/value memory holds "
            f"{backend.num_blocks * backend.block_tokens}; give --context-tokens of at least {num_tokens}, or none"
        )
    return num_blocks
