"""The rules that cut text into words, by their names in GGUF files, as data; runs none of them.

The patterns are those of the models' own tokenizer.json files. Only patterns listed here are ever compiled: one made up
by a file could take hours on a short text.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from subsecond.core.errors import UnsupportedError
from subsecond.models.vocabulary import WordRule

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)

QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN = "|".join([*_CASED, r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES])
GPT4O = "|".join([*(f"{word}{_CONTRACTIONS}?" for word in _CASED), r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES])
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_DEEPSEEK_HAN = "[一-龥ࠀ-一가-퟿]+"
# a few letters are escaped, because editors turn them into the look-alikes that Unicode prefers
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
    "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛ"
    "Ꜣ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK_MARKS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
_DEEPSEEK_LLM = (r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_MARKS, r"\s+$", _DEEPSEEK_HAN)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|""" + _SPACES,
)

KNOWN_PATTERNS = frozenset(
    {QWEN2, QWEN35, LLAMA3, TEKKEN, GPT4O, CL100K, GPT2, *_DEEPSEEK_LLM, *_DEEPSEEK_CODER, *_DEEPSEEK_V3, r"\p{N}", " "}
    | {r"\p{N}+", " {2,}", r"\s+"}
)
"""Every regular expression that may come from a file. Each takes time linear in the text, in its form below if any."""

LINEAR_FORMS = {r"\s+$": r"(?<!\s)\s++$"}
"""Patterns that look at each space of a run again and again, and what finds the same without that."""

_TO_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2_WORDS = {**_TO_BYTES, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_NFC = {"type": "NFC"}


def _cut(*patterns: str, digits: bool = False) -> Mapping[str, object]:
    splits = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, *([_DIGITS] if digits else []), _TO_BYTES]}


_GPT2_RULE = WordRule(None, _GPT2_WORDS)
_DIGIT_WORDS = {"type": "Sequence", "pretokenizers": [_DIGITS, _GPT2_WORDS]}
_LLAMA3_RULE = WordRule(None, _cut(LLAMA3), ignore_merges=True)
_CL100K_RULE = WordRule(None, _cut(LLAMA3))
_QWEN2_RULE = WordRule(_NFC, _cut(QWEN2))
_GPT4O_RULE = WordRule(None, _cut(GPT4O))

_RULES: Mapping[str, WordRule] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt"), _GPT2_RULE),
    "olmo": WordRule(_NFC, _GPT2_WORDS),
    **dict.fromkeys(("smollm", "starcoder", "refact"), WordRule(None, _DIGIT_WORDS)),
    "command-r": WordRule(_NFC, _DIGIT_WORDS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _LLAMA3_RULE),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _CL100K_RULE),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), _QWEN2_RULE),
    "qwen35": WordRule(_NFC, _cut(QWEN35)),
    "tekken": WordRule(None, _cut(TEKKEN), ignore_merges=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O_RULE),
    "deepseek-llm": WordRule(None, _cut(*_DEEPSEEK_LLM, digits=True)),
    "deepseek-coder": WordRule(None, _cut(*_DEEPSEEK_CODER, digits=True)),
    "deepseek-v3": WordRule(None, _cut(*_DEEPSEEK_V3)),
}

_BEGIN_WITH_BOS = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken"})


def find_word_rule(name: str) -> WordRule:
    """The rule that GGUF files call `name`; UnsupportedError, with the nearest known one, if there is none."""
    rule = _RULES.get(name)
    if rule is None:
        near = difflib.get_close_matches(name[:50], _RULES, n=1, cutoff=0.0)
        raise UnsupportedError(
            f"the vocabulary cuts words by the rule {name[:50]!r}; supported are {', '.join(sorted(_RULES))} "
            f"(nearest: {near[0]})"
        )
    return rule


def find_rule_name(rule: WordRule) -> str:
    """The inverse of `find_word_rule`, by what the steps of a rule do; UnsupportedError where none has a name."""
    wanted = _essence(rule)
    for name, known in _RULES.items():
        if name != "default" and _essence(known) == wanted:
            return name
    raise UnsupportedError(
        f"the vocabulary cuts words by a rule that GGUF files have no name for; known are {', '.join(sorted(_RULES))}"
    )


def _essence(rule: WordRule) -> tuple[object, object, bool]:
    """What makes a difference to words, as values that can be compared."""
    return _plain(rule.normalizer), _plain(rule.pre_tokenizer), rule.ignore_merges


def _plain(step: object) -> object:
    if isinstance(step, Mapping):
        nested = step.get("normalizers", step.get("pretokenizers"))
        if isinstance(nested, list):
            flat = [_plain(each) for each in nested]
            return flat[0] if len(flat) == 1 else flat
        defaults = {"use_regex": True, "invert": False, "add_prefix_space": False, "individual_digits": False}
        return {**defaults, **{name: _plain(value) for name, value in step.items() if name != "trim_offsets"}}
    return step


def adds_bos_by_default(name: str) -> bool:
    """Whether models with this rule expect their begin token where the file does not say so."""
    return name in _BEGIN_WITH_BOS


def sentencepiece_rule(*, add_space_prefix: bool, remove_extra_spaces: bool) -> WordRule:
    """SentencePiece: spaces become "▁", one more goes in front if asked for, and the whole text is one word."""
    steps: list[Mapping[str, object]] = []
    if remove_extra_spaces:
        steps += [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    if add_space_prefix:
        steps.append({"type": "Prepend", "prepend": "▁"})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    return WordRule({"type": "Sequence", "normalizers": steps}, None)


def wordpiece_rule(*, lowercase: bool, strip_accents: bool) -> WordRule:
    """BERT: control characters dropped, words cut at white space, punctuation and every CJK character."""
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }
    return WordRule(normalizer, {"type": "BertPreTokenizer"})
