"""The stepping reader of tokenizer.json: the same content as json.loads gives, however it is written, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from zlib import crc32

import numpy as np
import pytest

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats import json_texts
from subsecond.formats.json_texts import TextColumn
from subsecond.models.packed_vocabulary import AddedToken, PackedTokens
from subsecond.models.text_index import checksums
from subsecond.models.tokenizer_content import TokenizerContent, read_tokenizer_content

ODD_TEXTS = [
    "",
    "a",
    '"',
    "\\",
    '\\"',
    "\\\\",
    "a b",
    "  ",
    "{}",
    "],[",
    ":1,",
    "\n",
    "é",
    "▁の",
    "\U0001f600",
    "12",
    "\udc80",
]


def read(tmp_path: Path, content: object, **style: object) -> TokenizerContent:
    path = tmp_path / "tokenizer.json"
    raw = content if isinstance(content, bytes) else json.dumps(content, **style).encode("utf-8", "surrogateescape")  # type: ignore[arg-type]
    path.write_bytes(raw)
    return read_tokenizer_content(path)


def texts(column: TextColumn | None) -> list[str]:
    assert column is not None
    ends = np.cumsum(column.lengths, dtype=np.int64).tolist()
    return [
        column.blob[start:end].tobytes().decode("utf-8", "surrogateescape")
        for start, end in zip([0, *ends], ends, strict=False)
    ]


@pytest.mark.parametrize("window_bytes", [64, 100, 2**18])
@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}], ids=str)
def test_the_same_as_json_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window_bytes: int, style: dict[str, object]
) -> None:
    monkeypatch.setattr(json_texts, "WINDOW_BYTES", window_bytes)
    random = Random(str(style))
    words = [text for text in ODD_TEXTS if text and " " not in text]
    vocab = {text: random.randrange(10**6) for text in [*ODD_TEXTS, *map(str, range(300))]}
    merges = [random.choices(words, k=2) for _ in range(300)]
    for written in (merges, [" ".join(merge) for merge in merges]):
        content = read(tmp_path, {"model": {"vocab": vocab, "type": "BPE", "merges": written}, "x": [1]}, **style)
        assert content.vocab is not None
        assert dict(zip(texts(content.vocab), content.vocab.numbers.tolist(), strict=True)) == vocab
        assert texts(content.merges) == [part for merge in merges for part in merge]
        assert (content.model, content.sections) == ({"type": "BPE"}, {"x": [1]})


def test_unescaped_text_is_read_as_well(tmp_path: Path) -> None:
    vocab = {text: place for place, text in enumerate(ODD_TEXTS[:-1])}
    assert texts(read(tmp_path, {"model": {"vocab": vocab}}, ensure_ascii=False).vocab) == list(vocab)


@pytest.mark.parametrize(
    "vocab",
    [
        *(b'{"a":1,}', b'{"a":01}', b'{"a":1 2}', b'{"a":1.0}', b'{"a":1e3}', b'{"a":-1}', b'{"a":null}', b'{"a":{}}'),
        *(b'{"a"}', b'{"a":1 "b":2}', b'{"a":1', b'{"a":1]', b'{"a', b'{"a\\":1}', b'{,"a":1}', b'{\\"a":1}', b"{a:1}"),
        *(b'{"\\x":1}', b'{"\\u12":1}', b'{"\\ud800":1}', b'{"a\nb":1}', b'{"a":\x0b1}', b'{"a":1\x00}'),
        *(b'{"\xff":1}', b'{"\xc3":1,"\xa9":2}', b'{"\xed\xa0\x80":1}', b'{"a":12345678901234567890}'),
        *(b'{"a":1,"b":1}' + b" " * 10 + b",", b'{"' + b"x" * 5000 + b'":1}', b'{"a":' + b" " * 2**19 + b"1}"),
    ],
    ids=lambda vocab: repr(vocab[:30]),
)
def test_a_damaged_vocabulary(tmp_path: Path, vocab: bytes) -> None:
    with pytest.raises(FormatError):
        read(tmp_path, b'{"model":{"type":"BPE","vocab":%b,"merges":[]}}' % vocab)


@pytest.mark.parametrize(
    "merges",
    [
        *(b'["a b",]', b'["a b" "c d"]', b'["a  b"]', b'["ab"]', b'[" b"]', b'["a "]', b'["a b",["a","b"]]', b'["a b"'),
        *(
            b'[["a","b"],"a b"]',
            b'[["a","b","c"]]',
            b'[["a","b"],["a"]]',
            b'[["a","b"]',
            b'[["","b"]]',
            b'[[["a","b"]]]',
        ),
        *(b"[1]", b"[,]", b'["a b"}', b'["a \\ud800"]', b'["\xff b"]', b'["a\tb c"]'),
    ],
    ids=repr,
)
def test_damaged_merges(tmp_path: Path, merges: bytes) -> None:
    with pytest.raises(FormatError):
        read(tmp_path, b'{"model":{"type":"BPE","vocab":{"a":0},"merges":%b}}' % merges)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", FormatError),
        (b"[]", FormatError),
        (b'{"model":{}} x', FormatError),
        (b'{"model":{},"model":{}}', FormatError),
        (b'{"model":{"vocab":{},"vocab":{}}}', FormatError),
        (b'{"model":{}, "x":' + b"[" * 100 + b"]" * 100 + b"}", FormatError),
        (b'{"model":{}, "x":"' + b"y" * 2**22 + b'"}', FormatError),
        (b'{"model":{}, "added_tokens":[' + b'{"id":1,"content":"y"},' * 70_000 + b"{}]}", FormatError),
        (b'{"model":{"type":"Unigram","vocab":[["a",0.0]]}}', UnsupportedError),
    ],
    ids=lambda given: repr(given)[:40],
)
def test_damaged_files(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(tmp_path, content)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, b'\xef\xbb\xbf{"model":{"type":"BPE"}}').model == {"type": "BPE"}


def test_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"] * 9}}
    monkeypatch.setattr("subsecond.models.tokenizer_content.MAX_TOKENS", 1)
    with pytest.raises(FormatError, match="'vocab' are more than 1"):
        read(tmp_path, content)
    monkeypatch.setattr("subsecond.models.tokenizer_content.MAX_TOKENS", 2)
    monkeypatch.setattr("subsecond.models.tokenizer_content.MAX_MERGE_BYTES", 17)
    with pytest.raises(FormatError, match="'merges' have more than 17 bytes"):
        read(tmp_path, content)


def test_tokens_are_found_and_merges_ranked(tmp_path: Path) -> None:
    random = Random(3)
    words = list({"".join(random.choices("abcé▁", k=random.randrange(1, 30))) for _ in range(3000)})
    vocab = {word: place for place, word in enumerate(words)}
    merges = [(word[:cut], word[cut:]) for word in words for cut in (1, 2) if {word[:cut], word[cut:]} <= vocab.keys()]
    merges += merges[:5]
    shuffled = dict(random.sample(list(vocab.items()), len(vocab)))
    content = read(tmp_path, {"model": {"vocab": shuffled, "merges": merges}})
    assert content.vocab is not None and len(merges) > 100
    packed = PackedTokens.pack(content.vocab, [AddedToken(len(words) + 4, "new", True, (False, False))], "x")
    table = packed.finish(["new", "absent"], content.merges, "x")
    assert [table.text(token_id) for token_id in range(len(table.ends))] == [*words, "", "", "", "", "new"]
    assert table.entries() == vocab and all(table.find(word) == token_id for word, token_id in vocab.items())
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    assert {merge: table.rank(vocab[merge[0]], vocab[merge[1]]) for merge in ranks} == ranks
    assert len(table.pairs) == len(ranks)


def test_of_a_key_that_occurs_twice_the_last_counts(tmp_path: Path) -> None:
    content = read(tmp_path, b'{"model":{"vocab":{"a":0,"b":1,"a":2}}}')
    assert content.vocab is not None
    table = PackedTokens.pack(content.vocab, [], "x").table
    assert [table.text(token_id) for token_id in range(3)] == ["", "b", "a"]


def test_checksums() -> None:
    words = [bytes(Random(n).randbytes(n % 40)) for n in range(200)]
    lengths = np.array(list(map(len, words)), np.int64)
    blob = np.frombuffer(b"".join(words), np.uint8)
    assert checksums(blob, np.cumsum(lengths) - lengths, lengths).tolist() == list(map(crc32, words))
