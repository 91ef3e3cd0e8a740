"""Answers are held to their format whatever tokens are chosen; what costs too much is refused, and nothing crashes."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from llguidance import LLParserLimits

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.engine.grammar.compiler import GrammarCompiler
from subsecond.engine.grammar.costs import GrammarLimits
from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.engine.grammar.vetter import Vetter
from subsecond.models.reasoning import ReasoningMarkers, ReasoningSplitter
from subsecond.models.tokenizer import Tokenizer
from tests.byte_vocabulary import CONTROL, NORMAL, USER_DEFINED, metadata, token_texts
from tests.unit.engine.held_answers import allowed_by, is_valid, random_answer
from tests.unit.test_tokenizer_kinds import sentencepiece

MERGES = ['{ "', '" }', '" :', '" ,', "} }", "t r", "u e", "tr ue", "n u", "l l", "nu ll", "] }", "a b"]
MARKUP = ["<think>", "</think>", "<|stop|>"]
MARKERS = ReasoningMarkers("<think>", "</think>")


def vocabulary(*, kind: int = CONTROL, markup: list[str] | None = None) -> Tokenizer:
    content = metadata(merges=MERGES, extra_tokens=MARKUP if markup is None else markup)
    kinds = content["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    for index, text in enumerate(token_texts(content)):
        if text in MARKUP:
            kinds[index] = CONTROL if text == "<|stop|>" else kind
    content["tokenizer.ggml.eot_token_id"] = len(kinds) - 1
    return Tokenizer.from_gguf(content)


TOKENIZER = vocabulary()
COMPILER = GrammarCompiler(TOKENIZER)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "y\n", 3, None]}, "minItems": 1, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/note"}]},
    },
    "required": ["name", "age", "more"],
    "additionalProperties": False,
    "$defs": {"note": {"type": "object", "properties": {"text": {"const": 'a "b"'}}, "required": ["text"]}},
}
TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
            "required": ["of"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "tree": TREE,
    "number": {"type": "number", "exclusiveMinimum": -3.5, "maximum": 120, "multipleOf": 0.5},
    "pattern": {"type": "string", "pattern": "^[A-C]{2}-[0-9]{1,3}$"},
    "anything": {},
    "literals": {"enum": [True, None, 1.5, "é", [1, {"a": []}]]},
    "map": {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}}, "additionalProperties": False},
    "counted map": {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1, "maxProperties": 3},
    "all of": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 70}, {"multipleOf": 7}]},
    "prefix": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": False, "minItems": 2},
    "one of": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": each}}, "required": ["k"], "additionalProperties": False}
            for each in ("a", "b")
        ]
    },
}


def compiled(kind: Any, source: str = "", **options: Any) -> Any:
    return COMPILER.compile(OutputFormat(kind, source, **options))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid_under_its_schema(name: str) -> None:
    schema = SCHEMAS[name]
    make = compiled("json_schema", json.dumps(schema))
    assert make.unenforced == ()
    texts = {TOKENIZER.decode(random_answer(make(), TOKENIZER, seed)) for seed in range(25)}
    for text in texts:
        assert is_valid(json.loads(text, strict=False), schema), text
    assert len(texts) > (1 if name != "literals" else 2)


def test_the_validity_of_the_test_itself() -> None:
    assert is_valid({"name": "a", "age": 1, "more": None}, PERSON)
    invalid: list[Any] = [
        {"name": "", "age": 1, "more": None},
        {"name": "a", "age": 1.5, "more": None},
        {"name": "a"},
        [],
    ]
    for wrong in invalid:
        assert not is_valid(wrong, PERSON)
    assert not is_valid({"of": [{}]}, TREE)


def test_any_object() -> None:
    make = compiled("json_object")
    for seed in range(20):
        assert isinstance(json.loads(TOKENIZER.decode(random_answer(make(), TOKENIZER, seed)), strict=False), dict)


@pytest.mark.parametrize(
    ("kind", "source", "expression"),
    [
        ("regex", r"(yes|no)\d{1,3}/[^a]", r"(yes|no)[0-9]{1,3}/[^a]"),
        ("regex", r"^a\$$", r"a\$"),
        ("regex", r"^a\\$", r"a\\"),
        ("regex", "", ""),
        ("grammar", 'start: A "-" b+\nA: /[a-c]{2}/\nb: "x" | "yz"\n', "[a-c]{2}-(x|yz)+"),
        ("grammar", 'root ::= "a" item*\nitem ::= [0-9] | "b"\n', "a[0-9b]*"),
        ("lark", 'start: "a" ("b" | "c"){2}\n', "a[bc]{2}"),
    ],
)
def test_expressions_and_grammars(kind: Any, source: str, expression: str) -> None:
    make = compiled(kind, source)
    for seed in range(10):
        text = TOKENIZER.decode(random_answer(make(), TOKENIZER, seed))
        assert re.fullmatch(expression, text, re.DOTALL), text


def test_only_end_tokens_follow_a_complete_answer() -> None:
    assert len(TOKENIZER.eos_ids) == 2
    constraint = compiled("regex", "ab")()
    for token_id in TOKENIZER.encode("ab"):
        constraint.advance(token_id)
    for end in (TOKENIZER.eos_ids[0], TOKENIZER.eos_ids[1], TOKENIZER.eos_ids[0]):
        assert sorted(allowed_by(constraint, TOKENIZER.vocab_size)) == sorted(TOKENIZER.eos_ids)
        constraint.advance(end)


def test_no_markup_and_nothing_beyond_the_vocabulary_is_allowed() -> None:
    constraint = compiled("regex", "(?s:.*)")()
    allowed = set(allowed_by(constraint, TOKENIZER.vocab_size + 500))
    markup = set(TOKENIZER.control_tokens.values()) - set(TOKENIZER.eos_ids)
    assert len(markup) >= 5
    assert not allowed & markup
    assert max(allowed) < TOKENIZER.vocab_size
    assert set(TOKENIZER.eos_ids) | set(TOKENIZER.encode("a}")) <= allowed


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    constraint = compiled("regex", "ab")()
    with pytest.raises(InputError, match="cannot go on"):
        constraint.advance(TOKENIZER.encode("z")[0])
        constraint.fill_mask(np.zeros(20, np.uint32))


def test_an_answer_whose_masks_take_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = iter(range(100))
    monkeypatch.setattr("subsecond.engine.grammar.held_answer.time.thread_time", lambda: next(clock_s))
    with pytest.raises(InputError, match=r"takes too long to follow: 1\.0 s so far"):
        compiled("regex", "ab")().fill_mask(np.zeros(20, np.uint32))


@pytest.fixture
def few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lexer of a format, which all answers share, takes few states; it may be replaced after as few tokens."""
    limits = LLParserLimits(max_lexer_states=400, precompute_large_lexemes=False, verbose_errors=False)
    monkeypatch.setattr("subsecond.engine.grammar.compiler.parser_limits", lambda: limits)
    monkeypatch.setattr("subsecond.engine.grammar.compiled_format.MIN_TOKENS_TO_RENEW", 20)


LONG_TEXT = OutputFormat("regex", "(?s:.{1,2000})")


@pytest.mark.usefixtures("few_states")
def test_answers_go_on_when_the_lexer_that_they_share_is_full() -> None:
    make = GrammarCompiler(TOKENIZER).compile(LONG_TEXT)
    token_id = TOKENIZER.encode("a")[0]
    answers = [make() for _ in range(4)]
    for _ in range(150):
        for each in answers:
            assert token_id in allowed_by(each, TOKENIZER.vocab_size)
            each.advance(token_id)
    assert make._generation > 1
    assert token_id in allowed_by(make(), TOKENIZER.vocab_size)


@pytest.mark.usefixtures("few_states")
def test_a_format_that_fills_the_lexer_at_once_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subsecond.engine.grammar.compiled_format.MIN_TOKENS_TO_RENEW", 1000)
    make = GrammarCompiler(TOKENIZER).compile(LONG_TEXT)
    constraint = make()
    with pytest.raises(InputError, match="too many states"):
        for _ in range(500):
            allowed_by(constraint, TOKENIZER.vocab_size)
            constraint.advance(TOKENIZER.encode("a")[0])
    assert make._generation == 0


def test_answers_do_not_disturb_each_other() -> None:
    make = compiled("json_schema", json.dumps(PERSON))
    alone = [random_answer(make(), TOKENIZER, seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda seed: random_answer(make(), TOKENIZER, seed), range(6))) == alone


def test_a_vocabulary_without_an_end_is_refused() -> None:
    content = metadata()
    for name in ("eos_token_id", "bos_token_id"):
        del content[f"tokenizer.ggml.{name}"]
    texts = token_texts(content)
    texts[texts.index("<|end|>")] = "<|no|>"
    tokenizer = Tokenizer.from_gguf(content)
    assert not tokenizer.eos_ids
    with pytest.raises(UnsupportedError, match="no token that ends an answer"):
        GrammarCompiler(tokenizer).compile(OutputFormat("json_object"))


def chain(length: int) -> str:
    rules = {f"d{n}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(length)}
    return json.dumps({"$ref": "#/$defs/d0", "$defs": {**rules, f"d{length}": {}}})


HOSTILE: dict[str, tuple[Any, str, str]] = {
    "remote": ("json_schema", '{"$ref": "http://127.0.0.1:9/x"}', "outside of this schema"),
    "endless": ("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', "no answer"),
    "impossible": ("json_schema", '{"allOf": [{"type": "string"}, {"type": "null"}]}', "incompatible types"),
    "deep": ("json_schema", '{"items":' * 100 + "{}" + "}" * 100, "nest 64 levels"),
    "product": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(9)]} for i in range(9)]}),
        "too large",
    ),
    "large": ("json_schema", json.dumps({"enum": ["x" * 600_000]}), "bytes; at most"),
    "bad expression": ("json_schema", '{"items": {"pattern": "a{3,1}"}}', "expression at #/items/pattern: invalid rep"),
    "many alike": (
        "json_schema",
        json.dumps(
            {"type": "object", "anyOf": [{"properties": {f"{i}_{j}": {} for j in range(30)}} for i in range(99)]}
        ),
        "items; max is 10000",
    ),
    "long regex": ("regex", "a" * 9_000, "at most 8192"),
    "nested regex": ("regex", "(" * 2000 + "a" + ")" * 2000, "nested parentheses"),
    "looks ahead": ("regex", "(?=a)b", "look-ahead"),
    "refers back": ("regex", r"(a)\1", "backreferences"),
    "never matches": ("regex", r"[^\s\S]", "no answer can satisfy"),
    "no rule": ("grammar", "begin: 'a'\n", "cannot be used"),
    "cyclic": ("grammar", "start: a\na: start\n", "no answer can satisfy"),
    "bad GBNF": ("grammar", 'root ::= ("a"\n', "GBNF grammar cannot be read"),
    "long grammar": ("grammar", "start: " + '"a" ' * 20_000, "at most 65536"),
    "nested grammar": ("grammar", "start: " + "(" * 3000 + '"a"' + ")" * 3000 + "\n", "nested"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_compiled_is_told(case: str) -> None:
    kind, source, message = HOSTILE[case]
    with pytest.raises(InputError, match=message):
        compiled(kind, source, is_strict=False)


SLOW = "start: X\nX: " + " & ".join(f"/(.*[a-{chr(98 + n)}].{{{n}}}.*)/" for n in range(20)) + "\n"


def test_what_takes_too_long_is_refused_and_the_next_is_served() -> None:
    limits = GrammarLimits(max_compile_s=0.1)
    vetter = Vetter(limits)
    compiler = GrammarCompiler(TOKENIZER, limits=limits, vetter=vetter)
    try:
        for _ in range(2):
            with pytest.raises(InputError, match=r"takes more than 0\.1 s to compile"):
                compiler.compile(OutputFormat("grammar", SLOW))
        assert compiler.compile(OutputFormat("regex", "ab"))() is not None
    finally:
        vetter.close()


def test_what_needs_too_much_memory_is_refused() -> None:
    limits = GrammarLimits(max_compile_bytes=450 * 2**20, max_compile_s=60)
    vetter = Vetter(limits)
    try:
        multiples = {f"k{n}": {"type": "integer", "multipleOf": 9_000 + n} for n in range(300)}
        with pytest.raises(InputError, match="needs more than 450 MiB"):
            GrammarCompiler(TOKENIZER, limits=limits, vetter=vetter).compile(
                OutputFormat("json_schema", json.dumps({"properties": multiples}))
            )
        vetter.check('start: "a"\n')
    finally:
        vetter.close()


def test_long_chains_of_references_do_not_end_the_process() -> None:
    make = compiled("json_schema", chain(1_500))
    assert json.loads(TOKENIZER.decode(random_answer(make(), TOKENIZER, 1, begin=TOKENIZER.encode('{"a"'))))["a"] != 0


def test_grammars_from_outside_name_no_tokens_and_no_options() -> None:
    for source in ("start: <[5]>\n", "%llguidance {}\nstart: /a/\n", "start: @other\n"):
        with pytest.raises(UnsupportedError, match="which is not allowed"):
            compiled("grammar", source)


def test_compiled_formats_are_kept_within_bounds() -> None:
    compiler = GrammarCompiler(TOKENIZER, limits=GrammarLimits(max_cached=2))
    first = compiler.compile(OutputFormat("lark", 'start: "a"\n'))
    assert compiler.compile(OutputFormat("lark", 'start: "a"\n')) is first
    compiler.compile(OutputFormat("lark", 'start: "b"\n'))
    assert compiler.compile(OutputFormat("lark", 'start: "a"\n')) is first
    compiler.compile(OutputFormat("lark", 'start: "c"\n'))
    assert compiler.compile(OutputFormat("lark", 'start: "a"\n')) is first, "used last but one"
    small = GrammarCompiler(TOKENIZER, limits=GrammarLimits(max_cached_bytes=4 * 2**20))
    used = small.compile(OutputFormat("json_object"))
    assert small.compile(OutputFormat("json_object")) is used
    for seed in range(20):
        random_answer(used(), TOKENIZER, seed)
    assert small.compile(OutputFormat("json_object")) is used, "what is asked for is not dropped before it is given"
    assert small.compile(OutputFormat("json_object")) is not used, "answers made it grow"


def answer_text(tokenizer: Tokenizer, token_ids: list[int], prompt_ids: list[int]) -> tuple[str, str]:
    splitter = ReasoningSplitter(MARKERS, tokenizer, prompt_ids)
    parts = [splitter.push(each, tokenizer.decode([each])) for each in token_ids]
    parts.append(splitter.finish())
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED])
@pytest.mark.parametrize("end", ["", "<think>\n", "<think>\n\n</think>\n\n"])
def test_reasoning_is_free_and_the_answer_behind_it_held(kind: int, end: str) -> None:
    tokenizer = vocabulary(kind=kind)
    prompt_ids = tokenizer.encode("question" + end, allow_special=True)
    make = GrammarCompiler(tokenizer).compile(OutputFormat("regex", "yes|no"), markers=MARKERS, prompt_ids=prompt_ids)
    is_opened, may_open = end == "<think>\n", end == ""
    allowed = allowed_by(make(), tokenizer.vocab_size)
    opening, closing = tokenizer.control_tokens["<think>"], tokenizer.control_tokens["</think>"]
    assert (opening in allowed) is may_open
    assert (closing in allowed) is is_opened
    assert (tokenizer.encode("?")[0] in allowed) is is_opened
    assert not set(tokenizer.eos_ids) & set(allowed)
    begin = ([opening] if may_open else []) + [*tokenizer.encode("Well {?"), closing] if may_open or is_opened else []
    for seed in range(5):
        token_ids = random_answer(make(), tokenizer, seed, begin=begin)
        reasoning, text = answer_text(tokenizer, token_ids, prompt_ids)
        assert text in ("yes", "no")
        assert reasoning == ("Well {?" if begin else "")


def test_an_answer_need_not_reason() -> None:
    make = COMPILER.compile(OutputFormat("regex", "yes|no"), markers=MARKERS, prompt_ids=TOKENIZER.encode("q"))
    token_ids = random_answer(make(), TOKENIZER, 3, begin=TOKENIZER.encode("ye"))
    assert answer_text(TOKENIZER, token_ids, []) == ("", "yes")


def test_markers_that_are_no_tokens() -> None:
    tokenizer = vocabulary(markup=["<|stop|>"])
    make = GrammarCompiler(tokenizer).compile(OutputFormat("regex", "yes|no"), markers=MARKERS)
    begin = tokenizer.encode("<think>a < b</think>")
    for seed in range(5):
        token_ids = random_answer(make(), tokenizer, seed, begin=begin)
        assert answer_text(tokenizer, token_ids, [])[1] in ("yes", "no")


def test_a_space_that_decoding_drops_may_come_first() -> None:
    pieces = [*(f"▁{text}" for text in ("yes", "{")), *'yesno{}:",', "▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [2, CONTROL, CONTROL, *[6] * 256, *[NORMAL] * len(pieces)]
    tokenizer = Tokenizer.from_gguf(
        sentencepiece(tokens=tokens, token_type=kinds, scores=[-float(n) for n in range(len(tokens))])
    )
    assert tokenizer.strips_first_space
    make = GrammarCompiler(tokenizer).compile(OutputFormat("regex", "yes|no"))
    allowed = allowed_by(make(), tokenizer.vocab_size)
    assert {tokens.index("▁yes"), tokens.index("y"), tokens.index("n"), tokens.index("▁")} <= set(allowed)
    for seed in range(8):
        assert tokenizer.decode(random_answer(make(), tokenizer, seed)) in ("yes", "no")
