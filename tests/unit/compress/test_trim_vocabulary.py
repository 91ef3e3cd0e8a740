"""Trimmed vocabularies cut the texts of their domain as before, and can still write everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subsecond.compress import stage_trim_vocabulary
from subsecond.compress.stage_trim_vocabulary import kept_tokens
from subsecond.compress.trim_vocabulary import TrimmedVocabulary, trim_vocabulary
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.models.tokenizer import Tokenizer
from tests.byte_vocabulary import metadata
from tests.unit.compress.tiny_job import job_of, logits_of, result_logits
from tests.unit.test_tokenizer_kinds import BERT, sentencepiece
from tests.unit.tiny_decoder import TINY, tiny_shapes

# "wor" + "d" is never formed in "word", as "or" and "ord" have lower ranks; "world" then comes of "w" and "orld".
MERGES = ["o r", "l d", "w or", "or ld", "or d", "w ord", "w orld", "h e", "l l", "he ll", "hell o", "Ġ w", "Ġ world",
          "Ġw ord", "Ġ t", "Ġt he", "Ã ©"]  # fmt: skip
BYTES = Tokenizer.from_gguf(metadata(merges=MERGES))
PIECES = Tokenizer.from_gguf(sentencepiece())
TEXTS = st.text(st.sampled_from("hello world thé\n漢<|end|>▁ "), max_size=30)


def trim(tokenizer: Tokenizer, *texts: str) -> tuple[TrimmedVocabulary, Tokenizer]:
    used = {token_id for text in texts for token_id in tokenizer.encode(text)}
    trimmed = trim_vocabulary(tokenizer.vocabulary, tokenizer.table, used)
    return trimmed, Tokenizer(trimmed.vocabulary)


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@given(domain=st.lists(TEXTS, min_size=1, max_size=3), other=TEXTS)
def test_the_domain_is_cut_as_before_and_everything_can_be_written(
    tokenizer: Tokenizer, domain: list[str], other: str
) -> None:
    trimmed, smaller = trim(tokenizer, *domain)
    for text in domain:
        assert trimmed.kept[smaller.encode(text)].tolist() == tokenizer.encode(text)
        assert trimmed.renumber(np.array(tokenizer.encode(text), np.int64)).tolist() == smaller.encode(text)
    assert smaller.decode(smaller.encode(other)) == tokenizer.decode(tokenizer.encode(other))


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_the_library_cuts_texts_the_same_way(tokenizer: Tokenizer) -> None:
    long = "hello world the word hell " * 40  # long enough for the library's tables
    trimmed, smaller = trim(tokenizer, long)
    assert trimmed.kept[smaller.encode(long)].tolist() == tokenizer.encode(long)


def test_what_merging_forms_on_the_way_stays() -> None:
    trimmed, smaller = trim(BYTES, "hello")
    texts = list(smaller.vocabulary.tokens)
    assert {"he", "ll", "hell", "hello"} <= set(texts)
    assert not {"or", "world", "Ġw"} & set(texts)
    assert len(smaller.encode("hello")) == 1
    assert smaller.encode("hellworld") == [texts.index(each) for each in ("hell", *"world")]
    assert trimmed.kept.tolist() == sorted(trimmed.kept.tolist())


def test_special_tokens_keep_their_roles() -> None:
    trimmed, smaller = trim(BYTES, "x")
    assert dict(smaller.control_tokens).keys() == dict(BYTES.control_tokens).keys()
    for text, token_id in BYTES.control_tokens.items():
        assert trimmed.kept[smaller.control_tokens[text]] == token_id
    assert (smaller.bos_token, smaller.eos_token) == (BYTES.bos_token, BYTES.eos_token)
    assert smaller.encode("<|end|>", allow_special=True) == list(smaller.eos_ids)
    assert smaller.encode("<|end|>") != list(smaller.eos_ids), "no text becomes a special token"
    assert kept_tokens(BYTES, smaller).tolist() == trimmed.kept.tolist()


def test_vocabularies_that_cannot_be_trimmed_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="WordPiece"):
        trim(BERT, "hello")
    with pytest.raises(InputError, match="token 9999 is used"):
        trim_vocabulary(BYTES.vocabulary, BYTES.table, [9999])
    trimmed, _ = trim(BYTES, "hello")
    with pytest.raises(InputError, match="left out"):
        trimmed.renumber(np.array(BYTES.encode("world"), np.int64))


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_model_with_fewer_tokens_gives_the_logits_of_those(is_tied: bool, tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=BYTES.vocab_size + 7)  # rows that no token has
    shapes = tiny_shapes(config, is_tied=is_tied)
    job, sink = job_of(config, shapes, tmp_path)
    text = tmp_path / "domain.txt"
    text.write_text("hello the world", encoding="utf-8")
    used = np.array([BYTES.encode("hell the hell")], np.int32)
    job.checkpoint.tokenizer = BYTES
    job = replace(job, calibration=replace(job.calibration, windows=used, held_out=used[:, :2]))
    result = stage_trim_vocabulary.run(job, stage_trim_vocabulary.Settings(texts=(str(text),)))
    assert sink.tokenizer is not None
    kept = kept_tokens(BYTES, sink.tokenizer)
    assert sink.config.vocab_size == len(kept) < BYTES.vocab_size
    assert result.decisions[0].figures["tokens"] == len(kept)
    assert result.decisions[0].figures["length_of_other_texts"] > 1
    ids = np.array(sink.tokenizer.encode("hell the world"), np.int32)
    assert kept[ids].tolist() == BYTES.encode("hell the world")
    expected = logits_of(config, job.checkpoint.weights, kept[ids].astype(np.int32))[:, kept]
    np.testing.assert_allclose(result_logits(sink, ids), expected, rtol=1e-5, atol=1e-5)


def test_a_domain_that_uses_everything_saves_nothing(tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=BYTES.vocab_size)
    job, _ = job_of(config, tiny_shapes(config), tmp_path)
    job.checkpoint.tokenizer = BYTES
    with pytest.raises(InputError, match="leave the stage out"):
        stage_trim_vocabulary.run(job, stage_trim_vocabulary.Settings(first_ids=10**6))
    with pytest.raises(InputError, match="there is no file"):
        stage_trim_vocabulary.run(job, stage_trim_vocabulary.Settings(texts=(str(tmp_path / "nothing.txt"),)))
