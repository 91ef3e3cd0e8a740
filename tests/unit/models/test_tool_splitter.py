"""Tool calls are told from text as they stream; what is no call stays text, however the answer is cut into tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond.models.json_scanner import JsonScanner, Place
from subsecond.models.tool_calls import ToolCall, ToolCallDelta, joined_calls
from subsecond.models.tool_splitter import MAX_HELD_CHARS, ToolCallSplitter
from subsecond.models.tool_syntax import GENERIC_SYNTAX, KNOWN_SYNTAXES, ToolSyntax

NAMES = ("get_weather", "now", "f")
SYNTAXES = {syntax.name: syntax for syntax in (*KNOWN_SYNTAXES, GENERIC_SYNTAX)}
TAGGED, BARE, NAMED, LIST = (SYNTAXES[name] for name in ("tagged", "bare object", "named", "bracketed list"))


class Vocabulary:
    """Has some markers as control tokens, which decoded text leaves out; every other token has id 0."""

    def __init__(self, *hidden: str) -> None:
        self.control_tokens: Mapping[str, int] = {text: token_id for token_id, text in enumerate(hidden, start=1)}

    def is_special(self, token_id: int) -> bool:
        return token_id > 0

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:  # noqa: ARG002 - a protocol's
        raise AssertionError("not needed")


def tokens_of(pieces: Iterable[str], vocabulary: Vocabulary) -> list[tuple[int, str]]:
    """The pieces as (token id, decoded text)."""
    ids = vocabulary.control_tokens
    return [(ids[piece], "") if piece in ids else (0, piece) for piece in pieces]


def split(
    syntax: ToolSyntax, pieces: Iterable[str], vocabulary: Vocabulary | None = None
) -> tuple[str, tuple[ToolCall, ...], list[ToolCallDelta]]:
    vocabulary = vocabulary or Vocabulary()
    splitter = ToolCallSplitter(syntax, vocabulary, NAMES)
    texts: list[str] = []
    deltas: list[ToolCallDelta] = []
    for token_id, text in tokens_of(pieces, vocabulary):
        passed, found = splitter.push(token_id, text)
        texts.append(passed)
        deltas += found
    passed, found = splitter.finish()
    return "".join([*texts, passed]), joined_calls([*deltas, *found]), [*deltas, *found]


CALL = '{"name": "get_weather", "arguments": {"city": "Z\\u00fcrich }\\"", "days": [1, 2.5e3, {"a": null}]}}'
ARGUMENTS = '{"city": "Z\\u00fcrich }\\"", "days": [1, 2.5e3, {"a": null}]}'
WEATHER = ToolCall("get_weather", ARGUMENTS)
NOW = ToolCall("now", "{}")

# (syntax, answer, text that is left, calls)
ANSWERS: dict[str, tuple[ToolSyntax, str, str, tuple[ToolCall, ...]]] = {
    "text": (TAGGED, "No call < here <tool, at all.\n", "No call < here <tool, at all.\n", ()),
    "tagged": (TAGGED, f"<tool_call>\n{CALL}\n</tool_call>", "", (WEATHER,)),
    "text before": (TAGGED, f"Let me see.\n\n<tool_call>{CALL}</tool_call>\n", "Let me see.", (WEATHER,)),
    "text behind": (TAGGED, f"<tool_call>{CALL}</tool_call>\nDone. ", "\nDone. ", (WEATHER,)),
    "two": (
        TAGGED,
        f'<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "now"}}\n</tool_call>',
        "",
        (WEATHER, NOW),
    ),
    "arguments first": (TAGGED, '<tool_call>{"arguments": {"a": 1}, "name": "f"}', "", (ToolCall("f", '{"a": 1}'),)),
    "other keys": (
        TAGGED,
        '<tool_call>{"id": [1, {}], "type": "function", "name" : "f" , "arguments" : { } , "x": 1}</tool_call>',
        "",
        (ToolCall("f", "{ }"),),
    ),
    "as text": (TAGGED, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', "", (ToolCall("f", '{"a": 1}'),)),
    "no arguments": (TAGGED, '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", (NOW,)),
    "escaped name": (TAGGED, '<tool_call>{"n\\u0061me": "\\u0066"}</tool_call>', "", (ToolCall("f", "{}"),)),
    "other key of arguments": (TAGGED, '<tool_call>{"name": "f", "parameters": {}}', "", (ToolCall("f", "{}"),)),
    "no opening": (TAGGED, f" \n{CALL}", "", (WEATHER,)),
    "cut short": (TAGGED, '<tool_call>{"name": "f", "arguments": {"a": "b', "", (ToolCall("f", '{"a": "b'),)),
    "closing cut short": (TAGGED, f"<tool_call>\n{CALL}\n</tool_c", "", (WEATHER,)),
    "unknown name": (TAGGED, '<tool_call>{"name": "g"}</tool_call>', '<tool_call>{"name": "g"}</tool_call>', ()),
    "no name": (TAGGED, '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', ()),
    "a list as arguments": (
        TAGGED,
        'a <tool_call>{"name": "f", "arguments": [1]}',
        'a <tool_call>{"name": "f", "arguments": [1]}',
        (),
    ),
    "no JSON": (TAGGED, "a <tool_call> is a tag", "a <tool_call> is a tag", ()),
    "cut before the name": (TAGGED, 'a <tool_call>{"na', 'a <tool_call>{"na', ()),
    "second opening": (TAGGED, f"<tool_call> <tool_call>{CALL}", "<tool_call>", (WEATHER,)),
    "breaks in arguments": (
        TAGGED,
        '<tool_call>{"name": "f", "arguments": {"a": x}}</tool_call>',
        "x}}</tool_call>",
        (ToolCall("f", '{"a": '),),
    ),
    "opening cut short": (TAGGED, f"<tool_call>{CALL}</tool_call>\n<tool_ca", "", (WEATHER,)),
    "nothing in the last": (TAGGED, f"<tool_call>{CALL}</tool_call>\n<tool_call>", "", (WEATHER,)),
    "in a block of code": (TAGGED, f"```json\n{CALL}\n```\nok", "\nok", (WEATHER,)),
    "in a block, cut short": (BARE, f" ```\n{CALL}\n``", "", (WEATHER,)),
    "two blocks": (TAGGED, f'```\n{CALL}\n```\n```json\n{{"name": "now"}}```', "", (WEATHER, NOW)),
    "another block": (TAGGED, '```json\n{"name": 1}\n```', '```json\n{"name": 1}\n```', ()),
    "code": (TAGGED, f"```jsonc\n{CALL}", f"```jsonc\n{CALL}", ()),
    "JSON that is no call": (TAGGED, '{"name": "Bob", "arguments": {}}', '{"name": "Bob", "arguments": {}}', ()),
    "JSON behind text": (TAGGED, f"So: {CALL}", f"So: {CALL}", ()),
    "bare": (BARE, '{"name": "f", "parameters": {"a": 1}}', "", (ToolCall("f", '{"a": 1}'),)),
    "bare with opening": (BARE, '<|python_tag|>{"name": "f", "parameters": {}}', "", (ToolCall("f", "{}"),)),
    "bare twice": (
        BARE,
        '{"name": "f", "parameters": {}}; {"name": "now", "parameters": {}}',
        "",
        (ToolCall("f", "{}"), NOW),
    ),
    "bare, then text": (BARE, '{"name": "f"}; so', "; so", (ToolCall("f", "{}"),)),
    "other use of the opening": (BARE, "<|python_tag|>print(1)", "<|python_tag|>print(1)", ()),
    "list": (LIST, f'[TOOL_CALLS] [{CALL}, {{"name": "now", "arguments": {{}}}}]', "", (WEATHER, NOW)),
    "list with one bad": (LIST, f"[TOOL_CALLS][{CALL}, 7]", ", 7]", (WEATHER,)),
    "empty list": (LIST, "[TOOL_CALLS][]", "[TOOL_CALLS][]", ()),
    "one without a list": (LIST, f"[TOOL_CALLS]{CALL}", "", (WEATHER,)),
    "named": (NAMED, 'Hm. [TOOL_CALLS]f[ARGS]{"a": 1}', "Hm.", (ToolCall("f", '{"a": 1}'),)),
    "named twice": (NAMED, "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]now[ARGS]{}", "", (ToolCall("f", "{}"), NOW)),
    "named with an id": (NAMED, "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}", "", (ToolCall("f", "{}"),)),
    "named otherwise": (NAMED, "[TOOL_CALLS]g[ARGS]{}", "[TOOL_CALLS]g[ARGS]{}", ()),
    "named without an object": (NAMED, "[TOOL_CALLS]f[ARGS]7", "[TOOL_CALLS]f[ARGS]7", ()),
    "closed list": (
        SYNTAXES["closed list"],
        '<|tool_call|>[{"name": "f", "arguments": {}}]<|/tool_call|>',
        "",
        (ToolCall("f", "{}"),),
    ),
    "action": (
        SYNTAXES["action list"],
        '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}\n]<|END_ACTION|>',
        "",
        (ToolCall("f", '{"a": 1}'),),
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_calls_and_text(case: str) -> None:
    syntax, answer, text, calls = ANSWERS[case]
    assert split(syntax, [answer])[:2] == (text, calls)
    assert split(syntax, answer)[:2] == (text, calls), "one character a token"


@pytest.mark.parametrize("case", sorted(set(ANSWERS) - {"closing cut short", "opening cut short"}))
def test_markers_that_decoding_leaves_out(case: str) -> None:
    syntax, answer, text, calls = ANSWERS[case]
    vocabulary = Vocabulary(*syntax.markers)
    pieces = [answer]
    for marker in syntax.markers:
        pieces = [part for piece in pieces for part in _parted(piece, marker)]
    for marker in syntax.markers:
        text = text.replace(marker, "")
    assert split(syntax, pieces, vocabulary)[:2] == (text, calls)


def _parted(piece: str, marker: str) -> list[str]:
    parts = piece.split(marker)
    return [part for index, each in enumerate(parts) for part in ([marker, each] if index else [each]) if part]


def test_the_text_of_a_hidden_marker_is_text() -> None:
    answer = f"<tool_call>{CALL}</tool_call>"
    assert split(TAGGED, [answer], Vocabulary("<tool_call>", "</tool_call>"))[:2] == (answer, ())


def test_a_model_that_did_not_learn_the_syntax_may_write_its_markers_either_way() -> None:
    vocabulary = Vocabulary("<tool_call>", "</tool_call>")
    for pieces in (["<tool_call>", CALL, "</tool_call>"], ["<tool", "_call>", CALL, "</tool_call>"]):
        assert split(GENERIC_SYNTAX, pieces, vocabulary)[:2] == ("", (WEATHER,))


def test_arguments_come_as_they_are_written() -> None:
    pieces = [
        "I look. ",
        "<tool",
        "_call>",
        '{"name": "f"',
        ', "arg',
        'uments": ',
        '{"a"',
        ": 1",
        "}",
        "}",
        "</tool_call>",
    ]
    _, _, deltas = split(TAGGED, pieces)
    assert deltas == [
        ToolCallDelta(0, "f", '{"a"'),
        ToolCallDelta(0, None, ": 1"),
        ToolCallDelta(0, None, "}"),
    ]


def test_text_passes_at_once() -> None:
    splitter = ToolCallSplitter(TAGGED, Vocabulary(), NAMES)
    assert splitter.push(0, "Hello")[0] == "Hello"
    assert splitter.push(0, " a <")[0] == " a"
    assert splitter.push(0, "b")[0] == " <b"
    assert splitter.push(0, " {")[0] == " {", "no call begins with a brace any more"


def test_a_name_that_does_not_come_is_not_waited_for_without_end() -> None:
    answer = '<tool_call>{"x": "' + "a" * (MAX_HELD_CHARS + 10)
    splitter = ToolCallSplitter(TAGGED, Vocabulary(), NAMES)
    assert splitter.push(0, answer) == (answer, ())


def test_the_index_counts_calls() -> None:
    _, _, deltas = split(LIST, ['[TOOL_CALLS][{"name": "f"},{"name": "now", "arguments": {}}]'])
    assert [(delta.index, delta.name) for delta in deltas] == [(0, "f"), (1, "now")]


PIECES = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<tool",
            "_call>",
            "\n",
            " ",
            "{",
            "}",
            "[",
            "]",
            '"',
            ",",
            ";",
            ":",
            "\\",
            "1",
        ),
        *('{"name": "f", ', '"arguments": ', '{"a": "b"}', "}", '"name"', '"f"', "text", "ü😀", "<|python_tag|>"),
        *("```", "json", "```json\n", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "f", "now", "null", CALL),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SYNTAXES)), st.lists(PIECES, max_size=25), st.data())
def test_cuts_make_no_difference(name: str, parts: list[str], data: st.DataObject) -> None:
    answer = "".join(parts)
    places = data.draw(st.lists(st.integers(0, len(answer)), max_size=10))
    ends = sorted({*places, len(answer)})
    pieces = [answer[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    whole = split(SYNTAXES[name], [answer])
    assert split(SYNTAXES[name], pieces)[:2] == whole[:2]
    assert split(SYNTAXES[name], answer)[:2] == whole[:2]
    assert all(delta.name is not None for delta in whole[2] if delta.index not in {d.index for d in whole[2] if d.name})


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SYNTAXES)), st.lists(PIECES, max_size=25))
def test_without_calls_nothing_is_lost(name: str, parts: list[str]) -> None:
    answer = "".join(parts)
    text, calls, _ = split(SYNTAXES[name], [answer])
    assert calls or text == answer
    assert all(call.name in NAMES for call in calls)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5), st.booleans(), st.sampled_from([None, 2]))
def test_any_arguments_come_through(arguments: dict[str, object], is_ascii: bool, indent: int | None) -> None:
    text = json.dumps(arguments, ensure_ascii=is_ascii, indent=indent)
    answer = f'<tool_call>\n{{"name": "f", "arguments": {text}}}\n</tool_call>'
    assert split(TAGGED, answer)[:2] == ("", (ToolCall("f", text),))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["{", "}", "[", "]", '"', ",", ":", "1", "-", "e", "true", "nul", " ", "\\u0", "\\"]),
        max_size=12,
    )
)
def test_the_scanner_takes_what_json_is(parts: list[str]) -> None:
    text = "[" + "".join(parts) + "]"
    scanner = JsonScanner()
    is_whole = all(map(scanner.push, text)) and scanner.place is Place.END
    try:
        json.loads(text)
    except ValueError:
        assert not is_whole
    else:
        assert is_whole


@settings(max_examples=80, deadline=None)
@given(JSON_VALUES, st.booleans())
def test_the_scanner_ends_where_a_value_does(value: object, is_ascii: bool) -> None:
    text = json.dumps([value], ensure_ascii=is_ascii, indent=1)
    scanner = JsonScanner()
    for place, character in enumerate(text):
        assert scanner.push(character)
        assert (scanner.place is Place.END) == (place == len(text) - 1)
