"""A loaded model as lm-evaluation-harness sees models, without importing it; defines no task and no metric."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from subsecond.core.errors import InputError
from subsecond.engine.protocol import Engine
from subsecond.engine.request import Request, SamplingParams
from subsecond.engine.stream import TokenStream
from subsecond.engine.text import TextStream
from subsecond.measure.task_scores import encode_pair, first_id, with_begin
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.detokenizer import StreamingDetokenizer

MAX_LIVE_REQUESTS = 32  # what the engine has to do at any time; more would only wait
DEFAULT_ANSWER_TOKENS = 256
SAMPLING_NAMES = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")

_Result = TypeVar("_Result")


class LoadedModel(Protocol):
    """What is needed of a model; `subsecond.load` gives one."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The model on disk, with its tokenizer."""

    @property
    def engine(self) -> Engine:
        """What answers requests."""


class Instance(Protocol):
    """A request of the harness."""

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, continuation), (text,) or (context, settings)."""


class HarnessModel:
    """The three calls that lm-evaluation-harness makes, answered by the engine with its batches and prefix cache.

    The harness wants a subclass of its own class, which takes two lines in a program that has both installed:

        class Subsecond(HarnessModel, lm_eval.api.model.LM): pass
        lm_eval.simple_evaluate(model=Subsecond(subsecond.load("smollm2-135m")), tasks=["arc_easy"])

    Texts of special tokens in a context mean these tokens, as contexts made by `apply_chat_template` need it. What is
    longer than the model's context loses its begin.
    """

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()  # the harness' own class has something to set up
        self._checkpoint = model.checkpoint
        self._engine = model.engine
        self._max_tokens = int(getattr(model.engine, "max_tokens", model.checkpoint.config.context_length))
        self._numbers = itertools.count(1)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding would give it) of the continuation of each context."""

        def sequences() -> Iterator[tuple[list[int], int]]:
            for request in requests:
                context, continuation = request.args
                context_ids, ids = encode_pair(self._tokenizer, context, continuation, allow_special=True)
                yield [*context_ids, *ids], len(ids)

        return list(self._scores(sequences()))

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Log-probability in nats of each whole text, every token of it predicted once.

        A text beyond the model's context is read in windows without overlap; the last one has as much context as fits.
        """
        pieces = [list(self._rolling(request.args[0])) for request in requests]
        scores = self._scores(piece for found in pieces for piece in found)
        return [sum(next(scores)[0] for _ in found) for found in pieces]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The continuation of each context up to the first text of `until`, which is left out."""

        def streams() -> Iterator[TextStream]:
            for request in requests:
                context, given = request.args
                yield self._generation(context, given)

        return list(_in_groups(streams(), lambda stream: stream.collect().text))

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text that a conversation becomes; InputError where the model has no chat template."""
        template = self._checkpoint.chat_template
        if template is None:
            raise InputError("this model has no chat template; run the tasks without one")
        return template.render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The source of the chat template, empty where there is none or none is wanted."""
        template = self._checkpoint.chat_template
        return template.source if template is not None and chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """A name by which the harness tells its caches apart."""
        return self._checkpoint.source_sha256

    @property
    def _tokenizer(self) -> Any:
        return self._checkpoint.tokenizer

    def _rolling(self, text: str) -> Iterator[tuple[list[int], int]]:
        """(tokens to read, how many of the last ones count) of each window of a text."""
        token_ids = self._tokenizer.encode(text, allow_special=True)
        most = self._max_tokens - 1
        if token_ids:
            first = token_ids[:most]
            yield [first_id(self._tokenizer), *first], len(first)
        for start in range(most, len(token_ids), most):
            end = min(start + most, len(token_ids))
            yield token_ids[end - most - 1 : end], end - start

    def _scores(self, sequences: Iterator[tuple[list[int], int]]) -> Iterator[tuple[float, bool]]:
        """Sum of the log-probabilities of the last tokens of each sequence, and whether each is the most likely one."""

        def begun() -> Iterator[tuple[TokenStream, list[int], int]]:
            for token_ids, num_scored in sequences:
                kept = token_ids[-self._max_tokens :]
                if num_scored >= len(kept):
                    raise InputError(
                        f"a continuation of {num_scored} tokens does not fit into the context of {self._max_tokens}"
                    )
                params = SamplingParams(max_tokens=0, num_prompt_logprobs=1)
                yield self._submit(kept, params), kept, num_scored

        def ended(given: tuple[TokenStream, list[int], int]) -> tuple[float, bool]:
            stream, token_ids, num_scored = given
            for _ in stream:
                pass
            if num_scored == 0:
                return 0.0, True
            found = stream.prompt_logprobs[-num_scored:]
            pairs = zip(found, token_ids[-num_scored:], strict=True)
            is_greedy = all(entry.top_logprobs[0][0] == token_id for entry, token_id in pairs)
            return sum(entry.logprob for entry in found), is_greedy

        yield from _in_groups(begun(), ended)

    def _generation(self, context: str, given: Mapping[str, Any]) -> TextStream:
        settings = dict(given)
        until = settings.pop("until", ())
        until = (until,) if isinstance(until, str) else tuple(until or ())
        max_tokens = settings.pop("max_gen_toks", DEFAULT_ANSWER_TOKENS)
        if not settings.pop("do_sample", True):
            settings["temperature"] = 0.0
        unknown = sorted(set(settings) - set(SAMPLING_NAMES))
        if unknown:
            raise InputError(
                f"unknown setting {', '.join(unknown)}; there are until, max_gen_toks, do_sample, "
                f"{', '.join(SAMPLING_NAMES)}"
            )
        sampling = {name: value for name, value in settings.items() if value is not None}
        params = SamplingParams(max_tokens=max_tokens, stop=tuple(text for text in until if text), **sampling)
        token_ids = with_begin(self._tokenizer, self._tokenizer.encode(context, allow_special=True))
        room = self._max_tokens - max_tokens
        if room < 1:
            raise InputError(f"max_gen_toks={max_tokens} leaves no room for a context in {self._max_tokens} tokens")
        kept = (token_ids or [first_id(self._tokenizer)])[-room:]
        return TextStream(self._submit(kept, params), StreamingDetokenizer(self._tokenizer), stop=params.stop)

    def _submit(self, token_ids: Sequence[int], params: SamplingParams) -> TokenStream:
        name = f"harness-{id(self)}-{next(self._numbers)}"
        return self._engine.submit(Request(tuple(token_ids), params, name, tuple(self._tokenizer.eos_ids)))


def _in_groups(begun: Iterator[Any], ended: Callable[[Any], _Result]) -> Iterator[_Result]:
    """`ended` of each in order, of which only some are begun before they are needed."""
    while group := list(itertools.islice(begun, MAX_LIVE_REQUESTS)):
        for each in group:
            yield ended(each)
