"""Text of an answer: stop strings over token borders, whole characters, the final report."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from subsecond.engine.request import FinishReason, TokenEvent
from subsecond.engine.stream import TokenStream
from subsecond.engine.text import StopMatcher, TextStream
from subsecond.models.tool_calls import ToolCall, ToolCallDelta


class Pieces:
    """A detokenizer whose token `i` is the i-th piece; bytes wait until they make whole characters."""

    def __init__(self, pieces: Sequence[str | bytes]) -> None:
        self._pieces = pieces
        self._bytes = b""

    def push(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        self._bytes += piece.encode() if isinstance(piece, str) else piece
        try:
            text = self._bytes.decode()
        except UnicodeDecodeError:
            return ""
        self._bytes = b""
        return text

    def finish(self) -> str:
        return self._bytes.decode(errors="replace")


class HalvesAtBar:
    """A splitter for which all before the first `|` is reasoning."""

    def __init__(self) -> None:
        self._is_text = False

    def push(self, _: int, text: str) -> tuple[str, str]:
        if self._is_text:
            return "", text
        reasoning, bar, text = text.partition("|")
        self._is_text = bool(bar)
        return reasoning, text

    def finish(self, text: str) -> tuple[str, str]:
        return self.push(0, text)


class CallsInBraces:
    """A splitter for which what stands in braces is a call; the braces are tokens of their own."""

    def __init__(self) -> None:
        self._is_call = False
        self._num_calls = 0

    def push(self, _: int, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        if text in "{}" and text:
            self._is_call = text == "{"
            self._num_calls += self._is_call
            return "", (ToolCallDelta(self._num_calls - 1, "f", ""),) if self._is_call else ()
        return ("", (ToolCallDelta(self._num_calls - 1, None, text),)) if self._is_call else (text, ())

    def finish(self, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        return self.push(0, text) if text else ("", ())


def text_stream(
    pieces: Sequence[str | bytes],
    *stop: str,
    reason: FinishReason = "length",
    has_logprobs: bool = False,
    splitter: HalvesAtBar | None = None,
    tool_splitter: CallsInBraces | None = None,
) -> TextStream:
    """A stream whose engine has already answered with one token a piece."""
    cancelled: list[str] = []
    tokens = TokenStream("a", seed=1, num_prompt_tokens=4, variant="fake", cancel=cancelled.append)
    for index in range(len(pieces)):
        tokens.push(TokenEvent(index, -0.5, ((index, -0.5),), index, None if index < len(pieces) - 1 else reason))
    return TextStream(
        tokens,
        Pieces(pieces),
        splitter=splitter,
        tool_splitter=tool_splitter,
        stop=stop,
        has_logprobs=has_logprobs,
        load_ms=3.0,
    )


def test_pieces_are_passed_on_at_once() -> None:
    chunks = list(text_stream(["Hel", "lo", "!"]))
    assert [(chunk.text, chunk.token_ids, chunk.finish_reason) for chunk in chunks] == [
        ("Hel", (0,), None),
        ("lo", (1,), None),
        ("!", (2,), "length"),
    ]


def test_reasoning_comes_beside_the_text() -> None:
    stream = text_stream(["hm", "", ", so|Yes", "!"], splitter=HalvesAtBar())
    chunks = [(chunk.reasoning, chunk.text, chunk.token_ids) for chunk in stream]
    assert chunks == [("hm", "", (0,)), (", so", "Yes", (1, 2)), ("", "!", (3,))]
    completion = stream.completion
    assert completion is not None
    assert (completion.reasoning, completion.text) == ("hm, so", "Yes!")
    assert completion.usage.completion_tokens == 4


def test_stop_strings_are_looked_for_in_the_text_alone() -> None:
    completion = text_stream(["a STOP b|c ST", "OP d", "e"], "STOP", splitter=HalvesAtBar()).collect()
    assert (completion.reasoning, completion.text, completion.finish_reason) == ("a STOP b", "c ", "stop")


def test_calls_come_beside_the_text() -> None:
    stream = text_stream(
        ["hm|", "I call", "{", "1", "2", "}", "{", "3"], splitter=HalvesAtBar(), tool_splitter=CallsInBraces()
    )
    chunks = [(chunk.reasoning, chunk.text, chunk.tool_calls, chunk.token_ids) for chunk in stream]
    assert chunks == [
        ("hm", "", (), (0,)),
        ("", "I call", (), (1,)),
        ("", "", (ToolCallDelta(0, "f", ""),), (2,)),
        ("", "", (ToolCallDelta(0, None, "1"),), (3,)),
        ("", "", (ToolCallDelta(0, None, "2"),), (4,)),
        ("", "", (ToolCallDelta(1, "f", ""),), (5, 6)),
        ("", "", (ToolCallDelta(1, None, "3"),), (7,)),
    ]
    completion = stream.completion
    assert completion is not None
    assert (completion.text, completion.tool_calls) == ("I call", (ToolCall("f", "12"), ToolCall("f", "3")))


def test_stop_strings_end_no_call() -> None:
    completion = text_stream(["a", "{", "STOP", "}", "b STOP c"], "STOP", tool_splitter=CallsInBraces()).collect()
    assert (completion.text, completion.tool_calls) == ("ab ", (ToolCall("f", "STOP"),))
    assert completion.finish_reason == "stop"


def test_what_a_splitter_held_back_comes_last() -> None:
    class Late(HalvesAtBar):
        def push(self, _: int, text: str) -> tuple[str, str]:
            return "", text[:0]

        def finish(self, text: str) -> tuple[str, str]:
            return "hm", text + "STO"

    (chunk,) = text_stream(["a", b"\xe2\x82"], "STOP", splitter=Late())
    assert (chunk.reasoning, chunk.text, chunk.finish_reason) == ("hm", "\ufffdSTO", "length")


def test_half_a_character_waits() -> None:
    chunks = list(text_stream(["a", b"\xc3", b"\xa4", "b", b"\xe2\x82"]))
    assert [(chunk.text, chunk.token_ids) for chunk in chunks] == [("a", (0,)), ("ä", (1, 2)), ("b", (3,)), ("�", (4,))]


def test_the_token_that_ends_an_answer_has_no_text() -> None:
    completion = text_stream(["yes", "</s>"], reason="stop").collect()
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("yes", (0, 1), "stop")


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "num_tokens"),
    [
        (["one STOP two"], ["STOP"], "one ", 1),
        (["one ST", "OP two", "x"], ["STOP"], "one ", 2),
        (list("one STOP two"), ["STOP"], "one ", 8),
        (["one ST", "ART", " STOP"], ["STOP"], "one START ", 3),
        (["SSST", "OP"], ["STOP"], "SS", 2),
        (["aab", "aac"], ["aabaac"], "", 2),
        (["aabaab", "aac"], ["aabaac"], "aab", 2),
        (["x\n", "\n", "y"], ["\n\n", "y"], "x", 2),
        (["abcd"], ["bcd", "c"], "ab", 1),
        (["STO"], ["STOP"], "STO", 1),
        (["ä", b"\xc3", b"\xa4x"], ["äx"], "ä", 3),
    ],
)
def test_stop_strings_cut_the_text(pieces: list[str | bytes], stop: list[str], text: str, num_tokens: int) -> None:
    stream = text_stream(pieces, *stop)
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == text
    completion = stream.completion
    assert completion is not None
    assert completion.text == text
    assert len(completion.token_ids) == num_tokens
    assert sum(len(chunk.token_ids) for chunk in chunks) == num_tokens
    assert completion.finish_reason == ("length" if text == "STO" else "stop")


def test_a_held_back_beginning_comes_out_when_it_leads_nowhere() -> None:
    chunks = [chunk.text for chunk in text_stream(["a", "S", "T", "x", "ST"], "STOP")]
    assert chunks == ["a", "STx", "ST"]


def test_the_cut_does_not_depend_on_the_pieces() -> None:
    text, stops = "abcabdabcabeabcabd!", ("cabe", "beab", "dabcabea")
    whole = StopMatcher(stops)
    expected = whole.push(text) + whole.finish()
    for size in range(1, len(text)):
        matcher = StopMatcher(stops)
        pieces = [matcher.push(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(pieces) + matcher.finish() == expected
        assert matcher.matched == whole.matched == "cabe"


@pytest.mark.parametrize(
    ("pieces", "stop", "matched"),
    [
        (["abcd"], ["bcd", "c"], "c"),
        (["one ST", "ART", " STOP"], ["OR", "STOP"], "STOP"),
        (["one ", "two"], ["STOP"], None),
        (["ab"], ["b", "ab"], "ab"),
    ],
)
def test_a_stream_tells_which_stop_string_ended_it(
    pieces: list[str | bytes], stop: list[str], matched: str | None
) -> None:
    stream = text_stream(pieces, *stop)
    assert stream.matched_stop is None
    stream.collect()
    assert stream.matched_stop == matched


def test_a_stop_string_cancels_the_rest() -> None:
    cancelled: list[str] = []
    tokens = TokenStream("a", seed=1, num_prompt_tokens=1, variant="fake", cancel=cancelled.append)
    tokens.push(TokenEvent(0, 0.0, (), 0, None))
    stream = TextStream(tokens, Pieces(["one STOP two"]), stop=["STOP"])
    assert stream.collect().finish_reason == "stop"
    assert cancelled == ["a"]


def test_a_stream_that_nobody_can_read_any_more_is_cancelled() -> None:
    cancelled: list[str] = []
    tokens = TokenStream("a", seed=1, num_prompt_tokens=1, variant="fake", cancel=cancelled.append)
    stream = TextStream(tokens, Pieces([]))
    assert cancelled == []
    del stream
    assert cancelled == ["a"]


def test_leaving_a_with_block_cancels() -> None:
    cancelled: list[str] = []
    tokens = TokenStream("a", seed=1, num_prompt_tokens=1, variant="fake", cancel=cancelled.append)
    with TextStream(tokens, Pieces([])) as stream:
        assert cancelled == []
    assert cancelled == ["a"]
    assert stream.completion is None


def test_a_cancelled_answer_keeps_its_text() -> None:
    tokens = TokenStream("a", seed=1, num_prompt_tokens=1, variant="fake", cancel=lambda _: None)
    tokens.push(TokenEvent(0, 0.0, (), 0, None))
    tokens.push(TokenEvent(None, 0.0, (), 1, "cancelled"))
    completion = TextStream(tokens, Pieces(["one ST"]), stop=["STOP"]).collect()
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("one ST", (0,), "cancelled")


def test_the_completion_reports_usage_times_seed_and_log_probabilities() -> None:
    stream = text_stream(["a", "b"], has_logprobs=True)
    assert stream.completion is None
    completion = stream.collect()
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (4, 2)
    assert completion.timing.load_ms == 3.0
    assert completion.timing.ttft_ms is not None
    assert (completion.seed, completion.variant) == (1, "fake")
    assert [(entry.token_id, entry.logprob, entry.top) for entry in completion.logprobs] == [
        (0, -0.5, ((0, -0.5),)),
        (1, -0.5, ((1, -0.5),)),
    ]


def test_async_reading_gives_the_same() -> None:
    pieces = ["one ", "ST", "OP"]
    assert asyncio.run(text_stream(pieces, "STOP").acollect()).text == "one "

    async def read() -> list[str]:
        return [chunk.text async for chunk in text_stream(pieces)]

    assert asyncio.run(read()) == pieces
