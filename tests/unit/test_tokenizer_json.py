"""Folders with a tokenizer.json: roles from the files beside it, refusals of what is damaged, unknown or hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from subsecond.core.errors import FormatError, InputError, SubsecondError, UnsupportedError
from subsecond.models.tokenizer import Tokenizer
from tests.byte_vocabulary import MERGES, byte_characters

WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
FIRST_ADDED = 256 + len(MERGES)


def added(token_id: int, text: str, **flags: object) -> dict[str, object]:
    return {"id": token_id, "content": text, "special": True, "normalized": False, **flags}


def tokenizer_json(**changes: object) -> dict[str, Any]:
    tokens = [*byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {text: token_id for token_id, text in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in MERGES],
    }
    tokens_added = [added(FIRST_ADDED, "<|end|>"), added(FIRST_ADDED + 1, "<|begin|>")]
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [*tokens_added, added(FIRST_ADDED + 2, "<think>", special=False)],
        "normalizer": None,
        "pre_tokenizer": WORDS,
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": model,
    }
    for name, value in changes.items():
        owner, _, field = name.rpartition("__")
        (content[owner] if owner else content)[field] = value
    return content


def folder(path: Path, content: object, **sides: object) -> Path:
    (path / "tokenizer.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for name, side in sides.items():
        (path / f"{name}.json").write_text(side if isinstance(side, str) else json.dumps(side))
    return path


def test_ids_texts_and_special_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder(tmp_path, tokenizer_json()))
    assert tokenizer.vocab_size == FIRST_ADDED + 3
    assert tokenizer.encode("hello the") == [256 + MERGES.index("hell o"), 256 + MERGES.index("Ġt he")]
    assert tokenizer.encode("<|end|><think>", allow_special=True) == [FIRST_ADDED, FIRST_ADDED + 2]
    assert max(tokenizer.encode("<|end|><think>")) < FIRST_ADDED
    assert tokenizer.decode(tokenizer.encode("<|end|>é 1")) == "<|end|>é 1"
    assert tokenizer.is_special(FIRST_ADDED) and not tokenizer.is_special(FIRST_ADDED + 2)
    assert (tokenizer.bos_id, tokenizer.add_bos) == (None, False)
    assert tokenizer.eos_ids == (FIRST_ADDED,), "known by its text alone"


def test_merges_are_written_in_two_ways(tmp_path: Path) -> None:
    old = Tokenizer.from_folder(folder(tmp_path, tokenizer_json(model__merges=MERGES)))
    assert old.encode("hello the") == Tokenizer.from_folder(folder(tmp_path, tokenizer_json())).encode("hello the")


def test_roles_come_from_the_files_beside(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        tokenizer_json(),
        tokenizer_config={"bos_token": {"content": "<|begin|>"}, "eos_token": "<think>", "add_bos_token": True},
        generation_config={"eos_token_id": [FIRST_ADDED, 5], "bos_token_id": 3},
    )
    tokenizer = Tokenizer.from_folder(path)
    assert (tokenizer.bos_id, tokenizer.bos_token, tokenizer.add_bos) == (FIRST_ADDED + 1, "<|begin|>", True)
    assert tokenizer.eos_ids == (FIRST_ADDED + 2, FIRST_ADDED, 5)
    assert tokenizer.is_special(FIRST_ADDED + 2), "its role makes it a control token"


def test_roles_come_from_the_older_file_too(tmp_path: Path) -> None:
    path = folder(tmp_path, tokenizer_json(), special_tokens_map={"bos_token": "<|begin|>", "eos_token": "<|end|>"})
    tokenizer = Tokenizer.from_folder(path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (FIRST_ADDED + 1, (FIRST_ADDED,))


def test_the_post_processor_says_what_is_added(tmp_path: Path) -> None:
    special = [{"SpecialToken": {"id": text, "type_id": 0}} for text in ("<|begin|>", "<|end|>")]
    template: dict[str, Any] = {
        "type": "TemplateProcessing",
        "single": [special[0], {"Sequence": {"id": "A", "type_id": 0}}],
    }
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    content = tokenizer_json(post_processor={"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]})
    tokenizer = Tokenizer.from_folder(folder(tmp_path, content, tokenizer_config=config))
    assert tokenizer.encode_text("h") == [FIRST_ADDED + 1, ord("h")]
    template["single"] = [*template["single"], special[1]]
    tokenizer = Tokenizer.from_folder(folder(tmp_path, content, tokenizer_config=config))
    assert tokenizer.encode_text("h") == [FIRST_ADDED + 1, ord("h"), FIRST_ADDED]


def test_white_space_beside_a_special_token_may_belong_to_it(tmp_path: Path) -> None:
    tokens = [added(FIRST_ADDED, "<|end|>", rstrip=True), added(FIRST_ADDED + 1, "<|begin|>", lstrip=True)]
    tokenizer = Tokenizer.from_folder(folder(tmp_path, tokenizer_json(added_tokens=tokens)))
    tokenizer.save(tmp_path / "saved.json")
    for each in (tokenizer, Tokenizer.load(tmp_path / "saved.json")):
        ids = each.encode("a <|end|> \n b <|begin|> c", allow_special=True)
        plain = [each.encode(text) for text in ("a ", "b", " c")]
        assert ids == [*plain[0], FIRST_ADDED, *plain[1], FIRST_ADDED + 1, *plain[2]]


def test_a_merge_cannot_make_a_special_token(tmp_path: Path) -> None:
    hello = 256 + MERGES.index("hell o")
    content = tokenizer_json(added_tokens=[added(hello, "hello")])
    tokenizer = Tokenizer.from_folder(folder(tmp_path, content))
    for text in ("hello", "hello" + "x" * tokenizer.vocab_size):
        assert tokenizer.encode(text)[:2] == [256 + MERGES.index("he ll"), ord("o")]
    assert tokenizer.encode("hello", allow_special=True) == [hello]


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": []}, FormatError),
        ({"model__type": "Unigram"}, UnsupportedError),
        ({"model__type": 7}, UnsupportedError),
        ({"model__dropout": 0.1}, UnsupportedError),
        ({"model__end_of_word_suffix": "</w>"}, UnsupportedError),
        ({"model__ignore_merges": "yes"}, FormatError),
        ({"model__byte_fallback": 1}, FormatError),
        ({"model__vocab": []}, FormatError),
        ({"model__vocab": {}}, FormatError),
        ({"model__vocab": {"a": "b"}}, FormatError),
        ({"model__vocab": {"a": -1}}, FormatError),
        ({"model__vocab": {"a": True}}, FormatError),
        ({"model__vocab": {"a": 2**40}}, FormatError),
        ({"model__vocab": {"a": 2**20}}, FormatError),
        ({"model__vocab": {"a": 1, "b": 1}}, FormatError),
        ({"model__merges": {}}, FormatError),
        ({"model__merges": ["a"]}, FormatError),
        ({"model__merges": [["a"]]}, FormatError),
        ({"model__merges": [["a", 1]]}, FormatError),
        ({"model__merges": [["a", ""]]}, FormatError),
        ({"model__merges": [["a b", "c"]]}, UnsupportedError),
        ({"model__merges": ["zz yy"]}, FormatError),
        ({"added_tokens": {}}, FormatError),
        ({"added_tokens": [1]}, FormatError),
        ({"added_tokens": [{"id": 1}]}, FormatError),
        ({"added_tokens": [added(0, "other")]}, FormatError),
        ({"added_tokens": [added(FIRST_ADDED, "x" * 10**5)]}, FormatError),
        ({"added_tokens": [added(FIRST_ADDED, "x", single_word=True)]}, UnsupportedError),
        ({"added_tokens": [added(FIRST_ADDED, "x", special=1)]}, FormatError),
        ({"normalizer": 5}, FormatError),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, UnsupportedError),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 100}}, UnsupportedError),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": ""}}, FormatError),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}}, UnsupportedError),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, FormatError),
        ({"normalizer": {"type": "Prepend", "prepend": "\ud800"}}, FormatError),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000}}, FormatError),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence"}]}}, UnsupportedError),
        ({"normalizer": {"type": "BertNormalizer", "clean_text": 1}}, FormatError),
        ({"pre_tokenizer": None}, UnsupportedError),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, FormatError),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{}, WORDS]}}, UnsupportedError),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [3]}}, FormatError),
        ({"decoder": {"type": "Sequence", "decoders": [1]}}, FormatError),
        ({"decoder": {"type": "Strip", "content": " ", "start": "x"}}, FormatError),
        ({"post_processor": 5}, None),
    ],
    ids=str,
)
def test_damaged_and_unknown_fields(tmp_path: Path, changes: dict[str, object], error: type[Exception] | None) -> None:
    path = folder(tmp_path, tokenizer_json(**changes))
    if error is None:
        Tokenizer.from_folder(path)
        return
    with pytest.raises(error):
        tokenizer = Tokenizer.from_folder(path)
        tokenizer.encode("x" * tokenizer.vocab_size)


@pytest.mark.parametrize(
    "step",
    [
        {**SPLIT, "pattern": {"Regex": "(?:a|b|ab)*[bc]c"}},
        {**SPLIT, "pattern": {"Regex": "("}},
        {**SPLIT, "pattern": {"Regex": "(" * 10**5}},
        {**SPLIT, "pattern": {"Regex": 5}},
        {**SPLIT, "pattern": {}},
        {**SPLIT, "pattern": "x"},
        {**SPLIT, "pattern": {"String": "x" * 1000}},
        {**SPLIT, "pattern": {"String": "\udc00"}},
        {**SPLIT, "pattern": {"String": "x"}, "behavior": "Explode"},
        {**SPLIT, "pattern": {"String": "x"}, "invert": 3},
        {"type": "Digits"},
        {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "first"},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"},
        {"type": "Metaspace", "replacement": "_"},
        {"type": ["Split"]},
    ],
    ids=str,
)
def test_hostile_steps(tmp_path: Path, step: dict[str, object]) -> None:
    steps = {"type": "Sequence", "pretokenizers": [step, WORDS]}
    with pytest.raises((FormatError, UnsupportedError)):
        Tokenizer.from_folder(folder(tmp_path, tokenizer_json(pre_tokenizer=steps)))


@pytest.mark.parametrize(
    "sides",
    [
        {"tokenizer_config": "["},
        {"tokenizer_config": []},
        {"tokenizer_config": {"bos_token": 5}},
        {"special_tokens_map": {"eos_token": ["x"]}},
        {"generation_config": {"eos_token_id": "x"}},
        {"generation_config": {"eos_token_id": [10**9]}},
        {"generation_config": {"bos_token_id": -1}},
    ],
    ids=str,
)
def test_damaged_files_beside(tmp_path: Path, sides: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        Tokenizer.from_folder(folder(tmp_path, tokenizer_json(), **sides))


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json; fetch it too"):
        Tokenizer.from_folder(tmp_path)
    for content in ("", "[", "[" * 10**5, "null", "{}", "\udcff"):
        (tmp_path / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(FormatError):
            Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("field", ["added_tokens", "normalizer", "pre_tokenizer", "decoder", "model", "post_processor"])
@pytest.mark.parametrize("value", [0, "x", [], [[]], {}, {"type": None}, {"type": "BPE"}, True], ids=str)
def test_any_field_of_any_kind_is_read_or_refused(tmp_path: Path, field: str, value: object) -> None:
    path = folder(tmp_path, tokenizer_json(**{field: value}))
    try:
        Tokenizer.from_folder(path).encode("hello")
    except SubsecondError as error:
        assert str(error)
