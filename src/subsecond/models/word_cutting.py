"""Cuts text into words by a rule written as in a tokenizer.json: checks it field by field, then builds it.

Only steps that take time and space linear in the text are accepted, so a rule from an untrusted file is safe to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.fields import read_field, shorten
from subsecond.models.vocabulary import WordRule
from subsecond.models.word_rules import KNOWN_PATTERNS, LINEAR_FORMS

Spec = Mapping[str, object]
T = TypeVar("T")
MAX_STEPS = 16
_MAX_LITERAL = 64
_BEHAVIORS = {
    "Removed": "removed",
    "Isolated": "isolated",
    "MergedWithPrevious": "merged_with_previous",
    "MergedWithNext": "merged_with_next",
    "Contiguous": "contiguous",
}
_PREPEND_SCHEMES = ("always", "first", "never")


class WordCutter:
    """Normalizes text and cuts it into words. `is_first` tells whether a piece begins the whole text."""

    def __init__(self, rule: WordRule) -> None:
        """Build a rule.

        Raises:
            FormatError: a field is missing or of the wrong kind.
            UnsupportedError: a step or pattern that is not known to be safe.
        """
        self.normalizer = build_normalizer(rule.normalizer)
        self.first = build_pre_tokenizer(rule.pre_tokenizer)
        later = _for_later_pieces(rule.pre_tokenizer)
        self.later = self.first if later is rule.pre_tokenizer else build_pre_tokenizer(later)

    def cut(self, text: str, *, is_first: bool) -> list[str]:
        """Return the words of a text; InputError when the text is too long for the library."""
        pre_tokenizer = self.first if is_first else self.later
        try:
            if self.normalizer is not None:
                text = self.normalizer.normalize_str(text)
            if pre_tokenizer is None:
                return [text]
            return [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]
        except BaseException as error:
            raise_unless_panic(error)
            raise InputError(f"a text of {len(text)} characters is too long to cut into words") from error

    def attach(self, model: models.Model) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """The library's encoders that cut by this rule and then use `model`: for first pieces and for later ones."""
        encoders = tokenizers.Tokenizer(model), tokenizers.Tokenizer(model)
        for encoder, pre_tokenizer in zip(encoders, (self.first, self.later), strict=True):
            if self.normalizer is not None:
                encoder.normalizer = self.normalizer
            if pre_tokenizer is not None:
                encoder.pre_tokenizer = pre_tokenizer
        return encoders


def raise_unless_panic(error: BaseException) -> None:
    """Raise `error` again unless it is a panic of the library, which derives from BaseException.

    The one known cause is a pattern that looks back over tens of millions of characters.
    """
    if type(error).__name__ != "PanicException":
        raise error


def build_normalizer(spec: Spec | None) -> normalizers.Normalizer | None:
    """Build a normalizer, None for none; errors as in `WordCutter`."""
    steps = [_build(each, _NORMALIZERS, "normalizer") for each in _steps(spec, "normalizers", "normalizer")]
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else normalizers.Sequence(steps)


def build_pre_tokenizer(spec: Spec | None) -> pre_tokenizers.PreTokenizer | None:
    """Build a pre-tokenizer, None for none; errors as in `WordCutter`."""
    steps = [_build(each, _PRE_TOKENIZERS, "pre_tokenizer") for each in _steps(spec, "pretokenizers", "pre_tokenizer")]
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def rule_steps(rule: WordRule) -> list[Spec]:
    """All steps of a rule in order, normalizers first; FormatError if they are not a flat list of objects."""
    return [
        *_steps(rule.normalizer, "normalizers", "normalizer"),
        *_steps(rule.pre_tokenizer, "pretokenizers", "pre_tokenizer"),
    ]


def _steps(spec: Spec | None, list_name: str, where: str) -> list[Spec]:
    """The steps of a sequence, or the one step itself; sequences hold no sequences."""
    if spec is None:
        return []
    if spec.get("type") != "Sequence":
        return [spec]
    steps = spec.get(list_name)
    if not isinstance(steps, list) or len(steps) > MAX_STEPS or not all(isinstance(each, Mapping) for each in steps):
        raise FormatError(f"{where}: field {list_name!r} must be a list of at most {MAX_STEPS} objects")
    return steps


def _for_later_pieces(spec: Spec | None) -> Spec | None:
    """The same pre-tokenizer for a piece that does not begin the text: there "first" means no space in front."""
    steps = _steps(spec, "pretokenizers", "pre_tokenizer")
    if not any(step.get("prepend_scheme") == "first" for step in steps):
        return spec
    later = [{**step, "prepend_scheme": "never"} if "prepend_scheme" in step else step for step in steps]
    return {"type": "Sequence", "pretokenizers": later}


def _build(spec: Spec, builders: Mapping[str, Callable[[Spec, str], T]], where: str) -> T:
    kind = spec.get("type")
    if not isinstance(kind, str) or kind not in builders:
        raise UnsupportedError(
            f"the tokenizer has a {where} of type {shorten(kind)}; supported are {', '.join(sorted(builders))}"
        )
    return builders[kind](spec, f"{where} {kind}")


def _pattern(spec: Spec, where: str) -> tuple[str, bool]:
    """The pattern of a step, and whether it is a regular expression."""
    pattern = spec.get("pattern")
    if not isinstance(pattern, Mapping) or len(pattern) != 1:
        raise FormatError(f"{where}: field 'pattern' must be an object with one field, String or Regex")
    ((kind, text),) = pattern.items()
    if kind not in ("String", "Regex") or not isinstance(text, str) or not text:
        raise FormatError(f"{where}: field 'pattern' is {shorten(pattern)}; it must hold the text of String or Regex")
    if kind == "Regex" and text not in KNOWN_PATTERNS:
        raise UnsupportedError(
            f"{where}: the regular expression {text[:100]!r} is not one of the {len(KNOWN_PATTERNS)} known ones; "
            "others are refused, because they might never end"
        )
    if kind == "String" and len(text) > _MAX_LITERAL:
        raise FormatError(f"{where}: field 'pattern' has {len(text)} characters; allowed are {_MAX_LITERAL}")
    return (LINEAR_FORMS.get(text, text), True) if kind == "Regex" else (_utf8(text, where), False)


def _replace(spec: Spec, where: str) -> normalizers.Normalizer:
    text, is_regex = _pattern(spec, where)
    content = _utf8(read_field(spec, "content", str, where), where)
    if len(content) > (1 if is_regex else len(text)):
        raise UnsupportedError(f"{where}: it puts {content[:50]!r} for {text[:50]!r}, which makes texts longer")
    return normalizers.Replace(tokenizers.Regex(text) if is_regex else text, content)


def _prepend(spec: Spec, where: str) -> normalizers.Normalizer:
    text = _utf8(read_field(spec, "prepend", str, where), where)
    if not 1 <= len(text) <= _MAX_LITERAL:
        raise FormatError(f"{where}: field 'prepend' has {len(text)} characters; allowed are 1 to {_MAX_LITERAL}")
    return normalizers.Prepend(text)


def _strip(spec: Spec, where: str) -> normalizers.Normalizer:
    left, right = (read_field(spec, name, bool, where) for name in ("strip_left", "strip_right"))
    return normalizers.Strip(left=left, right=right)


def _bert_normalizer(spec: Spec, where: str) -> normalizers.Normalizer:
    strip_accents = None if spec.get("strip_accents") is None else read_field(spec, "strip_accents", bool, where)
    return normalizers.BertNormalizer(
        clean_text=read_field(spec, "clean_text", bool, where),
        handle_chinese_chars=read_field(spec, "handle_chinese_chars", bool, where),
        strip_accents=strip_accents,
        lowercase=read_field(spec, "lowercase", bool, where),
    )


def _byte_level(spec: Spec, where: str) -> pre_tokenizers.PreTokenizer:
    use_regex = read_field(spec, "use_regex", bool, where) if "use_regex" in spec else True
    return pre_tokenizers.ByteLevel(
        add_prefix_space=read_field(spec, "add_prefix_space", bool, where), use_regex=use_regex
    )


def _split(spec: Spec, where: str) -> pre_tokenizers.PreTokenizer:
    text, is_regex = _pattern(spec, where)
    behavior = read_field(spec, "behavior", str, where)
    if behavior not in _BEHAVIORS:
        raise FormatError(f"{where}: field 'behavior' is {shorten(behavior)}; allowed are {', '.join(_BEHAVIORS)}")
    invert = read_field(spec, "invert", bool, where) if "invert" in spec else False
    pattern = tokenizers.Regex(text) if is_regex else text
    return pre_tokenizers.Split(pattern, behavior=_BEHAVIORS[behavior], invert=invert)


def _metaspace(spec: Spec, where: str) -> pre_tokenizers.PreTokenizer:
    replacement = _utf8(read_field(spec, "replacement", str, where), where)
    if len(replacement) != 1:
        raise FormatError(f"{where}: field 'replacement' is {shorten(replacement)}; it must be one character")
    if "prepend_scheme" in spec:
        scheme = read_field(spec, "prepend_scheme", str, where)
    else:
        scheme = "always" if read_field(spec, "add_prefix_space", bool, where) else "never"
    if scheme not in _PREPEND_SCHEMES:
        raise FormatError(
            f"{where}: field 'prepend_scheme' is {shorten(scheme)}; allowed are {', '.join(_PREPEND_SCHEMES)}"
        )
    split = read_field(spec, "split", bool, where) if "split" in spec else True
    return pre_tokenizers.Metaspace(replacement=replacement, prepend_scheme=scheme, split=split)


def _utf8(text: str, where: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise FormatError(f"{where}: {shorten(text)} holds half of a surrogate pair")
    return text


_NORMALIZERS: Mapping[str, Callable[[Spec, str], normalizers.Normalizer]] = {
    "NFC": lambda *_: normalizers.NFC(),
    "NFD": lambda *_: normalizers.NFD(),
    "NFKC": lambda *_: normalizers.NFKC(),
    "NFKD": lambda *_: normalizers.NFKD(),
    "Lowercase": lambda *_: normalizers.Lowercase(),
    "StripAccents": lambda *_: normalizers.StripAccents(),
    "Strip": _strip,
    "Prepend": _prepend,
    "Replace": _replace,
    "BertNormalizer": _bert_normalizer,
}
_PRE_TOKENIZERS: Mapping[str, Callable[[Spec, str], pre_tokenizers.PreTokenizer]] = {
    "ByteLevel": _byte_level,
    "Split": _split,
    "Digits": lambda spec, where: pre_tokenizers.Digits(
        individual_digits=read_field(spec, "individual_digits", bool, where)
    ),
    "Metaspace": _metaspace,
    "BertPreTokenizer": lambda *_: pre_tokenizers.BertPreTokenizer(),
    "Whitespace": lambda *_: pre_tokenizers.Whitespace(),
    "WhitespaceSplit": lambda *_: pre_tokenizers.WhitespaceSplit(),
}
