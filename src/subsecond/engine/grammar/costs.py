"""What compiling and following a grammar may cost; the limits of the compiler itself, and of its process."""

from __future__ import annotations

from dataclasses import dataclass

from llguidance import LLParserLimits


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """What formats may cost.

    max_source_bytes     of one format, the schemas of all tools together
    max_regex_chars      of one regular expression
    max_grammar_bytes    of a grammar in Lark or GBNF form
    max_cached           compiled formats that are kept, and `max_cached_bytes` of memory in all by estimate
    max_compile_s        processor time of compiling
    max_compile_bytes    memory of the process that tries it first, address space included
    """

    max_source_bytes: int = 512 * 1024
    max_regex_chars: int = 8 * 1024
    max_grammar_bytes: int = 64 * 1024
    max_cached: int = 128
    max_cached_bytes: int = 512 * 2**20
    max_compile_s: float = 1.0
    max_compile_bytes: int = 2 * 2**30


def parser_limits() -> LLParserLimits:
    """Limits of one grammar: well above what long schemas need, low enough that a step of an answer stays short."""
    return LLParserLimits(
        max_items_in_row=10_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=25_000,
        max_lexer_states=100_000,
        max_grammar_size=250_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )
