"""The tokenizer.json of an artifact: one object that opens without reading every token. Knows no other format."""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from subsecond.core.errors import FormatError, InputError
from subsecond.formats.fields import read_field, read_int, read_mapping, shorten
from subsecond.models.token_table import TABLE_FIELDS, PackedTable, PackedTexts, TokenTable
from subsecond.models.vocabulary import MAX_VOCAB_SIZE, ModelKind, SpecialTokens, Vocabulary, WordRule

MAX_FILE_BYTES = 1 << 26
MAX_JSON_VALUES = 1 << 21
"""Of a whole file: 450,000 merges as lists of two texts, the most that is published, make 1.5 million."""
FORMAT_VERSION = 2

_ID_LISTS = ("control", "user_defined", "plain")


def save_tokenizer(path: Path, vocabulary: Vocabulary, table: TokenTable) -> None:
    """Write a vocabulary; FormatError when merges and tokens do not fit together."""
    special, words = vocabulary.special, vocabulary.words
    packed = table if isinstance(table, PackedTable) else PackedTable.pack(vocabulary.tokens, table)
    content = {
        "subsecond_tokenizer": FORMAT_VERSION,
        "model": str(vocabulary.model),
        "vocab_size": len(vocabulary.tokens),
        "normalizer": words.normalizer,
        "pre_tokenizer": words.pre_tokenizer,
        "ignore_merges": words.ignore_merges,
        "strips_first_space": vocabulary.strips_first_space,
        **{name: list(getattr(special, name).values()) for name in _ID_LISTS},
        "strips": [[special.control.get(text, special.user_defined.get(text)), *special.strips[text]]
                   for text in special.strips],
        "eos_ids": list(special.eos_ids),
        "add_bos": special.add_bos,
        "add_eos": special.add_eos,
        **{name: getattr(special, name) for name in ("bos_id", "unk_id", "cls_id", "sep_id")},
        "table": {name: binascii.b2a_base64(each, newline=False).decode() for name, each in packed.arrays().items()},
    }  # fmt: skip
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")


def load_tokenizer(path: Path) -> tuple[Vocabulary, PackedTable]:
    """Read what `save_tokenizer` wrote; InputError if it cannot be read, FormatError if it is something else."""
    content, where = read_tokenizer_json(path, MAX_FILE_BYTES), str(path)
    version = content.get("subsecond_tokenizer")
    if version != FORMAT_VERSION:
        raise FormatError(f"{where}: this is not a tokenizer saved by this version, but {shorten(version)}")
    vocab_size = read_int(content, "vocab_size", where, 1, MAX_VOCAB_SIZE)
    fields = read_mapping(content, "table", where)
    try:
        arrays = {name: binascii.a2b_base64(read_field(fields, name, str, where)) for name in TABLE_FIELDS}
    except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII
        raise FormatError(f"{where}: field 'table' holds something that is not base64: {error}") from None
    try:
        table = PackedTable.unpack(vocab_size, arrays)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None
    model = read_field(content, "model", str, where)
    if model not in list(ModelKind):
        raise FormatError(f"{where}: field 'model' is {shorten(model)}; allowed are {', '.join(ModelKind)}")
    words = WordRule(
        _read_optional_mapping(content, "normalizer", where),
        _read_optional_mapping(content, "pre_tokenizer", where),
        read_field(content, "ignore_merges", bool, where),
    )
    texts = PackedTexts(table)
    special = _read_special(content, texts, where)
    strips = read_field(content, "strips_first_space", bool, where)
    return Vocabulary(ModelKind(model), texts, words, special, strips_first_space=strips), table


def read_tokenizer_json(path: Path, max_bytes: int) -> Mapping[str, object]:
    """A JSON file that holds one object; InputError if it cannot be read, FormatError if it is something else."""
    if not path.is_file():  # reading a pipe would wait for whoever writes to it
        raise InputError(f"cannot read {path}: there is no such file")
    try:
        with path.open("rb") as file:
            # read() allocates what it is asked for, whatever the file has
            raw = file.read(min(path.stat().st_size, max_bytes) + 1)
        if len(raw) > max_bytes:
            raise FormatError(f"{path} is larger than {max_bytes} bytes, more than it can need")
        if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
            raise FormatError(f"{path} holds more than {MAX_JSON_VALUES} values, more than it can need")
        content = json.loads(raw)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds {shorten(content)}; it must hold an object")
    return content


def _read_optional_mapping(content: Mapping[str, object], name: str, where: str) -> Mapping[str, object] | None:
    return None if content.get(name) is None else read_mapping(content, name, where)


def _read_special(content: Mapping[str, object], texts: PackedTexts, where: str) -> SpecialTokens:
    def ids(name: str) -> list[int]:
        given = content.get(name)
        if not isinstance(given, list) or not all(type(each) is int and 0 <= each < len(texts) for each in given):
            raise FormatError(f"{where}: field {name!r} must be a list of token ids below {len(texts)}")
        return given

    def role(name: str) -> int | None:
        return None if content.get(name) is None else read_int(content, name, where, 0, len(texts) - 1)

    def by_text(token_ids: Iterable[int]) -> dict[str, int]:
        return {texts[token_id]: token_id for token_id in token_ids}

    strips = content.get("strips")
    if not isinstance(strips, list):
        raise FormatError(f"{where}: field 'strips' must be a list")
    flags = {}
    for each in strips:
        if not isinstance(each, list) or list(map(type, each)) != [int, bool, bool] or not 0 <= each[0] < len(texts):
            raise FormatError(f"{where}: field 'strips' must hold lists of a token id and two of true or false")
        flags[texts[each[0]]] = (each[1], each[2])
    return SpecialTokens(
        **{name: by_text(ids(name)) for name in _ID_LISTS},
        eos_ids=tuple(ids("eos_ids")),
        add_bos=read_field(content, "add_bos", bool, where),
        add_eos=read_field(content, "add_eos", bool, where),
        strips=flags,
        bos_id=role("bos_id"),
        unk_id=role("unk_id"),
        cls_id=role("cls_id"),
        sep_id=role("sep_id"),
    )
