"""Streaming text: never half a character, and together exactly what decoding all ids at once gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.tokenizer import Tokenizer
from tests.byte_vocabulary import metadata

TOKENIZER = Tokenizer.from_gguf(metadata())
IDS = st.lists(st.integers(0, TOKENIZER.vocab_size - 1))
# bytes of multi-byte characters, so that valid, cut and broken sequences are all frequent
HARD_IDS = st.lists(st.sampled_from([*b"a\x80\xbf\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xed\xa0\xff\xc0", 265, 266]))


def stream(token_ids: list[int], *, skip_special: bool = True) -> list[str]:
    detokenizer = StreamingDetokenizer(TOKENIZER, skip_special=skip_special)
    return [*map(detokenizer.push, token_ids), detokenizer.finish()]


@given(IDS | HARD_IDS, st.booleans())
def test_joined_pieces_equal_decode(token_ids: list[int], skip_special: bool) -> None:
    pieces = stream(token_ids, skip_special=skip_special)
    assert "".join(pieces) == TOKENIZER.decode(token_ids, skip_special=skip_special)


@given(st.text())
def test_valid_text_streams_in_whole_characters(text: str) -> None:
    pieces = stream(list(text.encode()))
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)
    assert pieces[-1] == ""


def test_a_character_appears_with_its_last_byte() -> None:
    assert stream(list("é€😀".encode())) == ["", "é", "", "", "€", "", "", "", "😀", ""]


def test_special_tokens_do_not_break_a_character() -> None:
    end = TOKENIZER.eos_ids[0]
    assert stream([0xC3, end, 0xA9]) == ["", "", "é", ""]
    assert stream([0xC3, end, 0xA9], skip_special=False) == ["", "\ufffd<|end|>", "\ufffd", ""]


def test_what_never_completes_is_replaced() -> None:
    assert stream([0xE2, 0x82]) == ["", "", "\ufffd"]
    assert stream([0xE2, 0x82, ord("a")]) == ["", "", "\ufffda", ""]


def test_finish_starts_afresh() -> None:
    detokenizer = StreamingDetokenizer(TOKENIZER)
    detokenizer.push(0xC3)
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.push(0xA9) == "\ufffd"
    assert detokenizer.finish() == ""
