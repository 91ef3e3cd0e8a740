"""Log-probabilities of a text in the form of the completions API: lists side by side, one entry a token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from subsecond.engine.request import PromptLogprobs
from subsecond.engine.text import TokenLogprobs
from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""What stands for a probability of 0, whose logarithm JSON cannot carry."""


def echoed_text(prompt: str | Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text of a prompt as it is echoed: as it was given, control tokens of ids spelled out."""
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special=False)


class TextLogprobs:
    """Writes the lists of one text piece by piece; `text_offset` counts characters of the text that is returned."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._answer_text = StreamingDetokenizer(tokenizer)
        self._offset = 0

    def prompt(
        self, prompt: str | Sequence[int], prompt_ids: Sequence[int], logprobs: Sequence[PromptLogprobs]
    ) -> dict[str, list[Any]]:
        """Return the lists of an echoed prompt.

        Its first token has no probability as nothing precedes it, nor have those that a deadline left unread.
        """
        tokenizer, lists = self._tokenizer, _empty()
        text = echoed_text(prompt, tokenizer)
        decoder = StreamingDetokenizer(tokenizer, skip_special=False)
        for place, token_id in enumerate(prompt_ids):
            offset = min(self._offset, len(text))
            if place == 0:
                _add(lists, self._name(token_id), None, None, offset)
                if (
                    token_id == tokenizer.bos_id
                    and isinstance(prompt, str)
                    and not text.startswith(tokenizer.bos_token)
                ):
                    continue  # it was put before the text, and is no part of it
            elif place > len(logprobs):
                _add(lists, self._name(token_id), None, None, offset)
            else:
                entry = logprobs[place - 1]
                top = self._top(token_id, entry.logprob, entry.top_logprobs)
                _add(lists, self._name(token_id), max(entry.logprob, LEAST_LOGPROB), top, offset)
            self._offset += len(decoder.push(token_id))
        self._offset = len(text)
        return lists

    def answer(self, logprobs: Iterable[TokenLogprobs]) -> dict[str, list[Any]]:
        """Return the lists of the next tokens of the answer, the one that ends it included."""
        lists = _empty()
        for token_id, logprob, top in ((each.token_id, each.logprob, each.top) for each in logprobs):
            tops = self._top(token_id, logprob, top)
            _add(lists, self._name(token_id), max(logprob, LEAST_LOGPROB), tops, self._offset)
            self._offset += len(self._answer_text.push(token_id))
        return lists

    def _name(self, token_id: int) -> str:
        """A token as text; one that is no whole characters by its bytes, so that no two look alike."""
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _top(self, token_id: int, logprob: float, top: Iterable[tuple[int, float]]) -> dict[str, float]:
        """The most likely tokens and the one that stands there, most likely first; of equal texts the likelier."""
        by_name: dict[str, float] = {}
        for each_id, value in (*top, (token_id, logprob)):
            by_name.setdefault(self._name(each_id), max(value, LEAST_LOGPROB))
        return by_name


def joined(first: Mapping[str, list[Any]], second: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the lists of two pieces of a text that follow each other."""
    return {name: first[name] + second[name] for name in first}


def _empty() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _add(lists: dict[str, list[Any]], *entry: object) -> None:
    for values, value in zip(lists.values(), entry, strict=True):
        values.append(value)
