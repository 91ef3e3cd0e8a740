"""Reasoning parts: markers over token borders and as control tokens, how prompts begin, what stays text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest

from subsecond.models.reasoning import ReasoningMarkers, ReasoningSplitter, find_markers, split_reasoning

THINK = ReasoningMarkers("<think>", "</think>")
OPENING_ID, CLOSING_ID = 128, 129


class AsciiTokenizer:
    """One token a character, and markers that are tokens of their own, left out of text or not at all."""

    def __init__(self, *, has_markers: bool = False, is_hidden: bool = False) -> None:
        self.control_tokens: Mapping[str, int] = {"<think>": OPENING_ID, "</think>": CLOSING_ID} if has_markers else {}
        self._is_hidden = is_hidden

    def is_special(self, token_id: int) -> bool:
        return self._is_hidden and token_id >= OPENING_ID

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        texts = {token_id: text for text, token_id in self.control_tokens.items()}
        return "".join(
            "" if skip_special and self.is_special(each) else texts.get(each) or chr(each) for each in token_ids
        )


def split(pieces: Sequence[str], prompt: str = "") -> tuple[str, str]:
    """Reasoning and text of an answer that comes in these pieces."""
    splitter = ReasoningSplitter(THINK, AsciiTokenizer(), list(map(ord, prompt)))
    parts = [splitter.push(0, piece) for piece in pieces] + [splitter.finish("")]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


ANSWERS = [
    ("<think>\nhm\n</think>\n\nyes", ("hm", "yes")),
    ("<think></think>yes", ("", "yes")),
    ("<think>\n\n</think>\n\nyes \n", ("", "yes \n")),
    ("\n <think>a</think>b", ("a", "b")),
    ("<think>a\n\n b </thin </think>c", ("a\n\n b </thin", "c")),
    ("<think>a<think>b</think>c</think>d<think>e</think>", ("a<think>b", "c</think>d<think>e</think>")),
    ("<think>never ends", ("never ends", "")),
    ("<think>cut </thi", ("cut </thi", "")),
    ("<think>a</think>", ("a", "")),
    ("<thinker> is text", ("", "<thinker> is text")),
    (" plain", ("", " plain")),
    ("", ("", "")),
    ("\n\n", ("", "\n\n")),
    ("<thi", ("", "<thi")),
    ("The <think> tag</think>", ("", "The <think> tag</think>")),
    ("a</think>b", ("", "a</think>b")),
]
OPENED = [
    ("hm\n</think>\n\nyes", ("hm", "yes")),
    ("<think>\nhm</think>yes", ("hm", "yes")),
    ("\n\n</think>\n\nyes", ("", "yes")),
    ("no end < / ", ("no end < /", "")),
    ("<t", ("<t", "")),
    (" ", ("", "")),
]


@pytest.mark.parametrize(("answer", "parts"), ANSWERS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_the_parts_do_not_depend_on_the_pieces(answer: str, parts: tuple[str, str], size: int) -> None:
    assert split([answer[start : start + size] for start in range(0, len(answer), size)]) == parts


@pytest.mark.parametrize(("answer", "parts"), OPENED)
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_a_prompt_can_open_the_block(answer: str, parts: tuple[str, str], size: int) -> None:
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
    assert split(pieces, "<s>user<think>\n") == parts


def test_a_prompt_can_close_the_block() -> None:
    assert split(["<think>", "a</think>b"], "<think>\n\n</think>\n\n") == ("", "<think>a</think>b")


@pytest.mark.parametrize("answer", [answer for answer, _ in ANSWERS])
def test_no_piece_has_half_a_marker(answer: str) -> None:
    splitter = ReasoningSplitter(THINK, AsciiTokenizer())
    reasoning = text = ""
    for character in answer:
        more = splitter.push(0, character)
        reasoning, text = reasoning + more[0], text + more[1]
        assert not reasoning.endswith(("<", "</", "</think"))
    last = splitter.finish("")
    assert (reasoning + last[0], text + last[1]) == split([answer])


def test_text_is_given_out_at_once() -> None:
    splitter = ReasoningSplitter(THINK, AsciiTokenizer())
    given = [splitter.push(0, piece) for piece in ("<think>\n", "a b", " <", "c ", "</think>\n", "\nyes", " <think>")]
    assert given == [("", ""), ("a b", ""), ("", ""), (" <c", ""), ("", ""), ("", "yes"), ("", " <think>")]


@pytest.mark.parametrize("is_hidden", [True, False])
@pytest.mark.parametrize(
    ("token_ids", "parts"),
    [
        ([OPENING_ID, *b"\na\n", CLOSING_ID, *b"\nb"], ("a", "b")),
        ([*b"\n", OPENING_ID, CLOSING_ID, *b"b"], ("", "b")),
        ([OPENING_ID, *b"a </"], ("a </", "")),
        ([OPENING_ID, *b" ", CLOSING_ID], ("", "")),
    ],
)
def test_markers_may_be_control_tokens(token_ids: list[int], parts: tuple[str, str], is_hidden: bool) -> None:
    tokenizer = AsciiTokenizer(has_markers=True, is_hidden=is_hidden)
    splitter = ReasoningSplitter(THINK, tokenizer)
    given = [splitter.push(each, tokenizer.decode([each])) for each in token_ids] + [splitter.finish("")]
    assert ("".join(part[0] for part in given), "".join(part[1] for part in given)) == parts


def test_control_tokens_switch_once_wherever_they_come() -> None:
    tokenizer = AsciiTokenizer(has_markers=True, is_hidden=True)
    splitter = ReasoningSplitter(THINK, tokenizer)
    token_ids = [*b"x", CLOSING_ID, *b"y", OPENING_ID, *b"a", OPENING_ID, CLOSING_ID, *b"b", OPENING_ID, *b"c"]
    given = [splitter.push(each, tokenizer.decode([each])) for each in token_ids] + [splitter.finish("")]
    assert ("".join(part[0] for part in given), "".join(part[1] for part in given)) == ("a", "xybc")


@pytest.mark.parametrize(
    ("prompt_ids", "parts"),
    [
        ([*b"ask", OPENING_ID, *b"\n"], ("hm", "")),
        ([*b"ask<think>\n"], ("", "hm")),
        ([OPENING_ID, *b"\n", CLOSING_ID, *b"\n\n"], ("", "hm")),
        ([OPENING_ID, *b"ask"], ("", "hm")),
        ([], ("", "hm")),
    ],
)
def test_where_markers_are_tokens_only_tokens_in_a_prompt_count(prompt_ids: list[int], parts: tuple[str, str]) -> None:
    splitter = ReasoningSplitter(THINK, AsciiTokenizer(has_markers=True), prompt_ids)
    assert splitter.finish("hm") == parts


def test_without_markers_everything_is_text() -> None:
    splitter = ReasoningSplitter(None, AsciiTokenizer(has_markers=True))
    assert splitter.push(0, "<think>a</think>") == ("", "<think>a</think>")
    assert splitter.push(OPENING_ID, "") == ("", "")
    assert splitter.finish("b") == ("", "b")


@pytest.mark.parametrize(
    ("control_tokens", "template", "markers"),
    [
        ({}, None, None),
        ({}, "{{ messages }}", None),
        ({}, "<think>", None),
        ({}, "{{ x.split('</think>') }}<think>", THINK),
        ({"<think>": 1, "</think>": 2}, None, THINK),
        ({"<think>": 1}, "</think>", THINK),
        ({"[THINK]": 1, "[/THINK]": 2}, "", ReasoningMarkers("[THINK]", "[/THINK]")),
        (
            {"<|START_THINKING|>": 1, "<|END_THINKING|>": 2},
            "",
            ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
        ),
    ],
)
def test_markers_are_found_where_the_model_mentions_them(
    control_tokens: dict[str, int], template: str | None, markers: ReasoningMarkers | None
) -> None:
    assert find_markers(control_tokens, template) == markers


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("<think>\na\n</think>\n\nb", ("a", "b")),
        (" <think></think>b</think>", ("", "b</think>")),
        ("b", None),
        ("<think>a", None),
        ("b<think>a</think>", None),
    ],
)
def test_an_answer_kept_whole_is_split(content: str, parts: tuple[str, str] | None) -> None:
    assert split_reasoning(content, THINK) == parts
