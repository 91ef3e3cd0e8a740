"""Output formats to constraints on one vocabulary: compiled once, kept in a bounded cache, copied for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.engine.constraint import ConstraintMaker
from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.models.reasoning import ReasoningMarkers
from subsecond.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """What formats may cost."""

    max_source_bytes: int = 256 * 1024
    max_cached: int = 128
    max_cached_bytes: int = 64 * 2**20


class GrammarCompiler:
    """Compiles formats for the vocabulary of one model; may be used from any thread. The first use takes longer."""

    def __init__(self, tokenizer: Tokenizer, *, limits: GrammarLimits | None = None) -> None:
        """Keep the tokenizer; nothing is built before the first `compile`."""

    def compile(
        self,
        output: OutputFormat,
        *,
        markers: ReasoningMarkers | None = None,
        prompt_ids: Sequence[int] = (),
    ) -> ConstraintMaker:
        """Return what makes the constraint of an answer. Takes up to a second: not for an event loop.

        With `markers` of a model that reasons, reasoning at the begin of the answer is free, and the format holds for
        what follows; `prompt_ids` tell whether the prompt has opened or closed the block already.

        Raises:
            InputError: the format is damaged, asks for what cannot be, or costs more than the limits; the text names
                the place.
            UnsupportedError: a schema has keywords that cannot be enforced and is strict.
        """
        raise NotImplementedError
