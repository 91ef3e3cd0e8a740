"""SentencePiece and WordPiece vocabularies by hand: exact ids and texts, special tokens, streams, damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.tokenizer import Tokenizer
from tests.byte_vocabulary import token_texts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PIECES = ["▁", "h", "e", "l", "o", "▁h", "el", "lo", "▁hel", "▁hello", "é", "▁▁"]
MARKUP = {"<b>": USER_DEFINED, "<|user|>": USER_DEFINED, "\n\n": USER_DEFINED, "   ": USER_DEFINED}


def sentencepiece(**changes: object) -> dict[str, object]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, *MARKUP]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(PIECES), *MARKUP.values()]
    content: dict[str, object] = {
        "model": "llama",
        "tokens": tokens,
        "scores": [-float(token_id) for token_id in range(len(tokens))],
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in content.items() if value is not None}


def wordpiece(**changes: object) -> dict[str, object]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, "▁hello", "▁un", "afford", "able", "▁,", "▁!", "▁'", "▁s", "▁e", "▁É", "▁漢", "x", "▁[", "▁]"]
    content: dict[str, object] = {
        "model": "bert",
        "tokens": tokens,
        "token_type": [CONTROL] * 5 + [NORMAL] * (len(tokens) - 5),
        "cls_token_id": 2,
        "seperator_token_id": 3,
        "unknown_token_id": 1,
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in content.items() if value is not None}


SPM, BARE, BERT = (
    Tokenizer.from_gguf(content)
    for content in (sentencepiece(), sentencepiece(add_space_prefix=False), wordpiece())
)  # fmt: skip
TOKENS = token_texts(sentencepiece())


def spelled(token_ids: list[int]) -> list[str]:
    return [TOKENS[token_id] for token_id in token_ids]


def test_pieces_with_high_scores_are_formed_first() -> None:
    assert spelled(SPM.encode("hello")) == ["▁hello"]
    assert spelled(SPM.encode("helo")) == ["▁hel", "o"]
    assert spelled(BARE.encode("hello")) == ["h", "el", "lo"]
    assert spelled(BARE.encode("hello hello")) == ["h", "el", "lo", "▁hello"]
    assert SPM.encode("") == []


def test_unknown_characters_become_bytes() -> None:
    assert spelled(BARE.encode("é😀h")) == ["é", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "h"]
    assert SPM.unencodable_bytes == b""


def test_without_byte_tokens_a_run_of_unknown_characters_is_one_token() -> None:
    tokens = ["<unk>", "<s>", "</s>", *PIECES]
    kinds, scores = [UNKNOWN, CONTROL, CONTROL, *[NORMAL] * len(PIECES)], [0.0] * len(tokens)
    tokenizer = Tokenizer.from_gguf(sentencepiece(tokens=tokens, token_type=kinds, scores=scores))
    for text in ("hxyh", "hxyh" + "h" * 2 * len(tokens)):
        assert tokenizer.encode(text)[:4] == [tokens.index("▁h"), 0, 4, 4][: 3 if len(text) == 4 else 4]


def test_spaces_at_the_begin_survive() -> None:
    for text in ("hello", " hello", "  hello", "hello ", "", " "):
        assert SPM.decode(SPM.encode(text)) == text
        assert BARE.decode(BARE.encode(text)) == text
    assert BARE.decode(BARE.encode("   h")) == "   h"


def test_special_tokens_and_plain_markup() -> None:
    text = "h<s></s><|user|><b>\n\n"
    controls = {1, 2, TOKENS.index("<|user|>")}
    assert not controls & set(SPM.encode(text))
    assert {TOKENS.index("<b>"), TOKENS.index("\n\n")} <= set(SPM.encode(text))
    assert SPM.decode(SPM.encode("h\n\nh")) == "h\n\n h", "each piece of text gets a space, as in training"
    assert BARE.decode(BARE.encode(text)) == text
    assert controls <= set(SPM.encode(text, allow_special=True))
    assert set(SPM.control_tokens) == {"<unk>", "<s>", "</s>", "<|user|>"}
    assert (SPM.bos_id, SPM.eos_ids, SPM.add_bos, SPM.bos_token) == (1, (2,), True, "<s>")
    assert SPM.encode_text("hello") == [1, *SPM.encode("hello")]


def test_roles_are_found_by_their_texts_where_the_file_names_none() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece(bos_token_id=None, eos_token_id=None))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


def test_extra_spaces_are_removed_where_the_file_says_so() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece(remove_extra_whitespaces=True))
    assert tokenizer.encode("  hello    h ") == tokenizer.encode("hello h")


def test_words_of_bert() -> None:
    hello, un, afford, able, comma = 5, 6, 7, 8, 9
    assert BERT.encode("Hello,unaffordable") == [hello, comma, un, afford, able]
    assert BERT.encode("É漢éx") == [13, 15, 13, 16]
    assert BERT.encode("hellothere") == [1], "a word is cut whole or not at all"
    assert BERT.encode_text("hello!") == [2, hello, 10, 3]
    assert BERT.encode("[MASK]")[0] == 17
    assert BERT.encode("x" * 101) == [1]
    assert BERT.decode([2, hello, comma, un, afford, able, 10, 3]) == "hello, unaffordable!"
    assert BERT.decode([hello, 3], skip_special=False) == "hello [SEP]"
    cased = Tokenizer.from_gguf(wordpiece(**{"normalizer.lowercase": False}))
    assert cased.encode("Hello É") == [1, 14]


@pytest.mark.parametrize("tokenizer", [SPM, BARE, BERT], ids=["prefix", "bare", "bert"])
@given(data=st.data(), skip_special=st.booleans())
def test_streams_equal_decoding_at_once(tokenizer: Tokenizer, data: st.DataObject, skip_special: bool) -> None:
    some = st.integers(0, tokenizer.vocab_size - 1)
    hard = (
        st.sampled_from([1, 2, 3 + 0x20, 3 + 0xC3, 3 + 0xA9, 3 + 0xF0, 259, 260, 264])
        if tokenizer is not BERT
        else some
    )
    token_ids = data.draw(st.lists(some | hard))
    detokenizer = StreamingDetokenizer(tokenizer, skip_special=skip_special)
    for _ in range(2):
        pieces = [*map(detokenizer.push, token_ids), detokenizer.finish()]
        assert "".join(pieces) == tokenizer.decode(token_ids, skip_special=skip_special)


@given(st.text() | st.text(st.sampled_from("helo é▁<b>\n")))
def test_text_survives_sentencepiece(text: str) -> None:
    assert BARE.decode(BARE.encode(text)) == text.replace("▁", " ")


def test_files_keep_everything(tmp_path: Path) -> None:
    text = "hello  é😀\n\n<b><|user|>"
    for tokenizer in (SPM, BARE, BERT):
        tokenizer.save(tmp_path / "tokenizer.json")
        loaded = Tokenizer.load(tmp_path / "tokenizer.json")
        for allow_special in (False, True):
            expected = tokenizer.encode(text, allow_special=allow_special)
            assert loaded.encode(text, allow_special=allow_special) == expected
        assert loaded.encode_text(text) == tokenizer.encode_text(text)
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert (loaded.cls_id, loaded.sep_id, loaded.add_bos) == (tokenizer.cls_id, tokenizer.sep_id, tokenizer.add_bos)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scores": None}, FormatError),
        ({"scores": [0.0]}, FormatError),
        ({"scores": [float("nan")] * len(TOKENS)}, FormatError),
        ({"scores": ["1"] * len(TOKENS)}, FormatError),
        ({"token_type": [BYTE, *[NORMAL] * (len(TOKENS) - 1)]}, FormatError),
        ({"add_space_prefix": 1}, FormatError),
        ({"precompiled_charsmap": [1, 2]}, UnsupportedError),
        ({"unknown_token_id": 10**9}, FormatError),
    ],
)
def test_damaged_sentencepiece_metadata(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        Tokenizer.from_gguf(sentencepiece(**changes))


def test_bert_needs_an_unknown_token() -> None:
    with pytest.raises(FormatError, match="unknown token"):
        Tokenizer.from_gguf(wordpiece(token_type=None, unknown_token_id=None))
