"""SentencePiece and WordPiece token ids equal those of transformers' tokenizers made from the same vocabulary."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, trainers
from transformers import AutoTokenizer, BertTokenizer, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

from subsecond.models.tokenizer import Tokenizer
from tests.parity.tokenizer_texts import corpus, parity_texts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPECIAL = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
HTML = ["\n\n", "\t\t", "<table>", "</code>"]


@cache
def pieces() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The merged pieces in order and the single characters of a vocabulary trained on the corpus.

    Rare characters are left out of it, and so are line ends and tabs; they fall back to bytes.
    """
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer: Any = trainers.BpeTrainer(vocab_size=2200, limit_alphabet=400, show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    by_id = [text for text, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    texts = [text for text in by_id if "\n" not in text and "\t" not in text]
    return tuple(text for text in texts if len(text) > 1), tuple(text for text in texts if len(text) == 1)


def gguf_metadata(architecture: str, extra: dict[str, int] | None = None, **changes: object) -> dict[str, object]:
    """Metadata as the converter of llama.cpp writes it: control, bytes, merged pieces, characters, added tokens."""
    merged, characters = pieces()
    tokens = [*SPECIAL, *BYTES, *(extra or {}), *merged, *characters]
    kinds = [*SPECIAL.values(), *[BYTE] * 256, *(extra or {}).values(), *[NORMAL] * (len(merged) + len(characters))]
    first = len(tokens) - len(merged) - len(characters)
    scores = [0.0] * 259 + [-1000.0] * (first - 259) + [-float(place) for place in range(len(tokens) - first)]
    content = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{name}": value for name, value in changes.items()},
    }
    return {"general.architecture": architecture, **content}


def of_transformers(content: dict[str, object]) -> tokenizers.Tokenizer:
    """What transformers makes of the same metadata."""
    given = {
        "tokenizer_type": "llama",
        "tokens": content["tokenizer.ggml.tokens"],
        "scores": content["tokenizer.ggml.scores"],
        "token_type": content["tokenizer.ggml.token_type"],
    }
    backend, _ = convert_gguf_tokenizer(str(content["general.architecture"]), given)
    return backend


def assert_agree(ours: Tokenizer, theirs: tokenizers.Tokenizer, texts: list[str]) -> None:
    expected = theirs.encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, expected, strict=True):
        assert ours.encode(text) == encoding.ids, repr(text)
        assert ours.decode(encoding.ids) == theirs.decode(encoding.ids), repr(text)


def assert_native_agrees(ours: Tokenizer, texts: list[str]) -> None:
    """The library's way of merging, taken for long texts, gives what the package's own gives."""
    expected = [ours.encode(text) for text in texts]
    ours.encode("x" * ours.vocab_size)
    assert [ours.encode(text) for text in texts] == expected


def test_a_space_in_front_of_every_text() -> None:
    content = gguf_metadata("phi3")
    assert_agree(Tokenizer.from_gguf(content), of_transformers(content), parity_texts(2000))


def test_llama_where_the_text_does_not_begin_with_a_space() -> None:
    """transformers' class puts no second space there, while the models' own tokenizer.json files do."""
    content = gguf_metadata("llama")
    texts = [text for text in parity_texts(2000) if not text.startswith((" ", "▁"))]
    assert len(texts) > 1500
    assert_agree(Tokenizer.from_gguf(content), of_transformers(content), texts)


def test_gemma_without_a_space_in_front_and_with_its_own_order_of_merges() -> None:
    content = gguf_metadata("gemma3", dict.fromkeys(HTML, USER_DEFINED), add_space_prefix=False)
    tokens, kinds = content["tokenizer.ggml.tokens"], content["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(kinds, list)
    runs = [place for place, text in enumerate(tokens) if len(text) > 1 and not text.strip("▁")]
    assert len(runs) > 2
    for place in runs:
        tokens[place], kinds[place] = " " * len(tokens[place]), USER_DEFINED
    ours = Tokenizer.from_gguf(content)
    texts = [*parity_texts(2000), "a\n\nb\t\tc <table>x</code>", "\n\n\n", "a    b  c"]
    assert_agree(ours, of_transformers(content), texts)
    assert_native_agrees(ours, texts[::9])


@pytest.mark.parametrize("architecture", ["phi3", "gemma2"])
def test_saved_files_and_long_texts(architecture: str, tmp_path: Path) -> None:
    ours = Tokenizer.from_gguf(gguf_metadata(architecture, add_space_prefix=architecture == "phi3"))
    ours.save(tmp_path / "tokenizer.json")
    loaded, texts = Tokenizer.load(tmp_path / "tokenizer.json"), parity_texts(300)
    assert [loaded.encode(text) for text in texts] == [ours.encode(text) for text in texts]
    assert_native_agrees(loaded, texts)
    assert_native_agrees(ours, texts)
    ids = range(ours.vocab_size)
    assert [loaded.token_bytes(each) for each in ids] == [ours.token_bytes(each) for each in ids]
    assert loaded.decode(ours.encode(" a b")) == " a b"


def test_scores_out_of_order_and_equal() -> None:
    content = gguf_metadata("phi3")
    scores = content["tokenizer.ggml.scores"]
    assert isinstance(scores, list)
    content["tokenizer.ggml.scores"] = [score if score > -1 else -float(int(score * 7919) % 50) for score in scores]
    ours = Tokenizer.from_gguf(content)
    assert_agree(ours, of_transformers(content), parity_texts(600))
    assert_native_agrees(ours, parity_texts(200))


def merges_of(theirs: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(theirs.to_str())["model"]["merges"]]


@pytest.mark.parametrize("kind", [LlamaTokenizer, GemmaTokenizer])
def test_folders_that_transformers_saved(kind: Any, tmp_path: Path) -> None:
    content = gguf_metadata("gemma" if kind is GemmaTokenizer else "llama")
    merges = merges_of(of_transformers(content))
    tokens = content["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    vocabulary = {text: token_id for token_id, text in enumerate(tokens)}
    if kind is GemmaTokenizer:
        vocabulary |= {"<pad>": len(vocabulary), "<mask>": len(vocabulary) + 1}
    saved = kind(vocab=vocabulary, merges=merges, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    saved.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<br>", special=True, rstrip=True)])
    saved.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("\n\n", normalized=False)])
    saved.save_pretrained(tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.bos_id, ours.eos_ids) == (1, (2,))
    assert ours.encode_text("Über") == theirs.encode("Über")
    assert_agree(ours, theirs.backend_tokenizer, parity_texts(2000))
    for text in ("<s>Hi <tool>there</s> you", " <br>  \n x<br>", "a<s> b"):
        assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False), text
    assert not set(ours.encode("<s></s><tool><br>")) & set(ours.control_tokens.values())


def test_a_folder_that_prepends_by_its_normalizer(tmp_path: Path) -> None:
    """As the files of Llama 2, TinyLlama, Mistral and Phi-3 do."""
    content = gguf_metadata("phi3")
    backend = of_transformers(content)
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path)
    ours, gguf = Tokenizer.from_folder(tmp_path), Tokenizer.from_gguf(content)
    assert_agree(ours, backend, parity_texts(600))
    text = "<s> [INST] Hi [/INST]x</s><s>y"
    expected = backend.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allow_special=True) == gguf.encode(text, allow_special=True) == expected


def bert(tmp_path: Path, **options: Any) -> tuple[BertTokenizer, dict[str, object]]:
    """transformers' BERT tokenizer over a trained vocabulary, saved in the folder, and the GGUF metadata of it."""
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=options.get("do_lower_case", True))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer: Any = trainers.WordPieceTrainer(
        vocab_size=1500, limit_alphabet=300, special_tokens=special, show_progress=False
    )
    trained.train_from_iterator(corpus(), trainer)
    theirs: Any = BertTokenizer(vocab=trained.get_vocab(), **options)
    theirs.save_pretrained(tmp_path)
    by_id = [text for text, _ in sorted(theirs.get_vocab().items(), key=lambda item: item[1])]
    spelled = [text if text in special else text[2:] if text.startswith("##") else "\u2581" + text for text in by_id]
    content: dict[str, object] = {
        "model": "bert",
        "tokens": spelled,
        "token_type": [CONTROL if text in special else NORMAL for text in by_id],
        "cls_token_id": theirs.cls_token_id,
        "seperator_token_id": theirs.sep_token_id,
        "unknown_token_id": theirs.unk_token_id,
    }
    return theirs, {f"tokenizer.ggml.{name}": value for name, value in content.items()}


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"strip_accents": False}], ids=str)
def test_bert(options: dict[str, Any], tmp_path: Path) -> None:
    theirs, content = bert(tmp_path, **options)
    if "do_lower_case" in options:
        content["tokenizer.ggml.normalizer.lowercase"] = False
    if "strip_accents" in options:
        content["tokenizer.ggml.normalizer.strip_accents"] = False
    texts = parity_texts(2000)
    gguf = Tokenizer.from_gguf(content)
    gguf.save(tmp_path / "saved.json")
    for ours in (gguf, Tokenizer.from_folder(tmp_path), Tokenizer.load(tmp_path / "saved.json")):
        assert (ours.cls_id, ours.sep_id) == (theirs.cls_token_id, theirs.sep_token_id)
        for text, encoding in zip(texts, theirs.backend_tokenizer.encode_batch(texts), strict=True):
            assert ours.encode_text(text) == encoding.ids, repr(text)
        ids = theirs.encode("Don't stop, me -- now! Größe 12.5")
        assert ours.decode(ids) == theirs.backend_tokenizer.decode(ids, skip_special_tokens=True)
        assert not {theirs.cls_token_id, theirs.mask_token_id} & set(ours.encode("[CLS] [MASK]"))
        assert ours.encode("[MASK]x", allow_special=True)[0] == theirs.mask_token_id
