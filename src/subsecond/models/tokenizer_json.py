"""Reads the vocabulary of a Hugging Face folder: tokenizer.json and the small files beside it; encodes nothing.

Every field is checked before use. What a model does to text has to consist of known steps; anything else is refused
rather than skipped, because it would change the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import read_field, read_int, read_mapping, shorten
from subsecond.formats.json_file import read_json_object
from subsecond.models.tokenizer_file import MAX_FILE_BYTES, read_tokenizer_json
from subsecond.models.vocabulary import (
    END_TEXTS,
    MAX_MERGES,
    MAX_VOCAB_SIZE,
    ModelKind,
    SpecialTokens,
    Vocabulary,
    WordRule,
    split_user_defined,
)
from subsecond.models.word_cutting import rule_steps
from subsecond.models.wordpiece import MAX_WORD_CHARS

FILE_NAME = "tokenizer.json"
_SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")

Json = Mapping[str, object]


def read_folder_vocabulary(folder: Path) -> Vocabulary:
    """Read and check it.

    Raises:
        InputError: there is no tokenizer.json, or a file cannot be read.
        FormatError: a file is damaged.
        UnsupportedError: the model is Unigram, or has an option that is not supported.
    """
    path = folder / FILE_NAME
    content, where = read_tokenizer_json(path, MAX_FILE_BYTES), str(path)
    sides: dict[str, Json] = {
        name: read_json_object(folder / name) if (folder / name).is_file() else {} for name in _SIDE_FILES
    }
    model = read_mapping(content, "model", where)
    rule = WordRule(
        _optional(content, "normalizer", where),
        _optional(content, "pre_tokenizer", where),
        _flag(model, "ignore_merges", where),
    )
    kind = _model_kind(model, rule, where)
    added = _read_added(content, where)
    tokens = _read_tokens(model, added, where)
    try:
        "".join(tokens).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise FormatError(f"{where}: a token holds half of a surrogate pair, which is no text") from None
    special = _read_special(content, model, kind, tokens, added, sides, where)
    held_out = {*special.control, *special.user_defined, *special.plain}
    merges = [] if kind is ModelKind.WORDPIECE else _read_merges(model, held_out, where)
    if kind is not ModelKind.WORDPIECE:
        _check_unknown(model, kind, tokens, where)
    strips = kind is ModelKind.WORDPIECE or _strips_first_space(content, where)
    return Vocabulary(kind, tokens, rule, special, merges, strips_first_space=strips)


def _model_kind(model: Json, rule: WordRule, where: str) -> ModelKind:
    name = model.get("type", "BPE")
    if name == "WordPiece":
        prefix, max_chars = model.get("continuing_subword_prefix", "##"), model.get("max_input_chars_per_word", 100)
        if prefix != "##" or max_chars != MAX_WORD_CHARS:
            raise UnsupportedError(
                f"{where}: the model marks word parts with {shorten(prefix)} and cuts words of up to "
                f"{shorten(max_chars)} characters; supported are '##' and {MAX_WORD_CHARS}"
            )
        return ModelKind.WORDPIECE
    if name != "BPE":
        raise UnsupportedError(f"{where}: the model is of type {shorten(name)}; supported are BPE and WordPiece")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field) not in (None, "", 0.0):
            raise UnsupportedError(f"{where}: the model's field {field!r} is {shorten(model[field])}; it must be empty")
    steps = rule_steps(rule)
    if any(step.get("type") == "ByteLevel" for step in steps):
        return ModelKind.BYTE_LEVEL
    if any("▁" in (step.get("content"), step.get("replacement")) for step in steps):
        return ModelKind.SENTENCEPIECE
    raise UnsupportedError(f"{where}: the model is BPE, but neither byte-level nor in the style of SentencePiece")


def _check_unknown(model: Json, kind: ModelKind, tokens: Sequence[str], where: str) -> None:
    """Refuse a model whose unknown characters would need what merging does not offer."""
    byte_fallback, known = _flag(model, "byte_fallback", where), set(tokens)
    has_bytes = all(f"<0x{byte:02X}>" in known for byte in range(256))
    if kind is ModelKind.SENTENCEPIECE:
        if byte_fallback != has_bytes:
            raise UnsupportedError(f"{where}: byte_fallback is {byte_fallback}, but it has {has_bytes} byte tokens")
        if not has_bytes and model.get("unk_token") is not None and not _flag(model, "fuse_unk", where):
            raise UnsupportedError(f"{where}: unknown characters become one token each; supported is one for a run")
    elif byte_fallback and has_bytes:
        raise UnsupportedError(f"{where}: the model is byte-level and falls back to bytes as well")


def _read_added(content: Json, where: str) -> list[Json]:
    added = content.get("added_tokens", [])
    if not isinstance(added, list) or len(added) > MAX_VOCAB_SIZE or not all(isinstance(each, dict) for each in added):
        raise FormatError(f"{where}: field 'added_tokens' must be a list of objects")
    for each in added:
        if _flag(each, "single_word", where):
            raise UnsupportedError(f"{where}: token {shorten(each.get('content'))} is only found as a whole word")
    return added


def _read_tokens(model: Json, added: Sequence[Json], where: str) -> list[str]:
    """All token texts by id; ids that nothing has are empty texts."""
    vocab = read_mapping(model, "vocab", where)
    if not set(map(type, vocab.values())) <= {int}:
        raise FormatError(f"{where}: field 'vocab' must map texts to token ids")
    ids: list[Any] = list(vocab.values())
    more = [(read_field(each, "content", str, where), read_field(each, "id", int, where)) for each in added]
    given = {*ids, *(token_id for _, token_id in more)}
    if not given:
        raise FormatError(f"{where}: the vocabulary is empty")
    if min(given) < 0 or max(given) >= min(MAX_VOCAB_SIZE, 2 * len(given) + 1024):
        raise FormatError(
            f"{where}: {len(given)} tokens have ids from {min(given)} to {max(given)}; they must begin at 0, lie close "
            f"together and below {MAX_VOCAB_SIZE}"
        )
    if len(set(ids)) != len(ids):
        raise FormatError(f"{where}: two texts in field 'vocab' have the same id")
    tokens = [""] * (max(given) + 1)
    for text, token_id in zip(vocab, ids, strict=True):
        tokens[token_id] = text
    for text, token_id in more:
        if tokens[token_id] not in ("", text):
            raise FormatError(f"{where}: {shorten(text)} and {shorten(tokens[token_id])} both have id {token_id}")
        tokens[token_id] = text
    return tokens


def _read_merges(model: Json, held_out: set[str], where: str) -> list[str]:
    """The merges as "left right"; those that would make a held-out token are left out, as no text may become one."""
    given = model.get("merges")
    if not isinstance(given, list) or len(given) > MAX_MERGES:
        raise FormatError(f"{where}: field 'merges' must be a list of at most {MAX_MERGES}")
    pairs: list[list[str]] = [merge.split(" ") for merge in given] if set(map(type, given)) == {str} else given
    if not set(map(type, pairs)) <= {list} or not set(map(len, pairs)) <= {2}:
        raise FormatError(f"{where}: field 'merges' must hold pairs of texts, or each as one text with a space between")
    parts = list(chain.from_iterable(pairs))
    if not set(map(type, parts)) <= {str} or "" in parts:
        raise FormatError(f"{where}: field 'merges' holds something that is not made of two texts")
    if " " in "".join(parts):
        raise UnsupportedError(f"{where}: field 'merges' holds tokens with a space in them")
    if not (held_out.isdisjoint(parts) and held_out.isdisjoint(map("".join, pairs))):
        pairs = [pair for pair in pairs if held_out.isdisjoint((*pair, "".join(pair)))]
    return list(map(" ".join, pairs))


def _read_special(
    content: Json,
    model: Json,
    kind: ModelKind,
    tokens: Sequence[str],
    added: Sequence[Json],
    sides: Mapping[str, Json],
    where: str,
) -> SpecialTokens:
    ids = {text: token_id for token_id, text in enumerate(tokens) if text}
    control = {text: ids[text] for each in added if (text := str(each["content"])) and _flag(each, "special", where)}
    user_defined = {text: ids[text] for each in added if (text := str(each["content"])) and text not in control}
    roles = {name: ids.get(_role_text(sides, name)) for name in ("bos_token", "eos_token", "cls_token", "sep_token")}
    unk_text = model.get("unk_token")
    roles["unk_token"] = ids.get(unk_text) if isinstance(unk_text, str) else None
    generation = sides["generation_config.json"]
    ends: list[int | None] = [roles["eos_token"], *_generation_ids(generation, "eos_token_id", len(tokens))]
    bos_id = roles["bos_token"]
    if bos_id is None:
        bos_id = next(iter(_generation_ids(generation, "bos_token_id", len(tokens))), None)
    # its role makes a token a control token, whatever the file calls it
    for token_id in (*roles.values(), *ends, bos_id):
        if token_id is not None and tokens[token_id]:
            user_defined.pop(tokens[token_id], None)
            control[tokens[token_id]] = token_id
    ends += [control[text] for text in sorted(END_TEXTS & control.keys())]
    user_defined, plain = split_user_defined(user_defined, kind)
    flags = {str(a["content"]): (_flag(a, "lstrip", where), _flag(a, "rstrip", where)) for a in added}
    config = sides["tokenizer_config.json"]
    eos_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))
    return SpecialTokens(
        control=control,
        user_defined=user_defined,
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=bos_id is not None and _is_added(config, "add_bos_token", content, 0, tokens[bos_id]),
        add_eos=bool(eos_ids) and _is_added(config, "add_eos_token", content, -1, tokens[eos_ids[0]]),
        plain=plain,
        unk_id=roles["unk_token"],
        cls_id=roles["cls_token"],
        sep_id=roles["sep_token"],
        strips={
            text: flag for text, flag in flags.items() if True in flag and (text in control or text in user_defined)
        },
    )


def _role_text(sides: Mapping[str, Json], name: str) -> str:
    """The text of a role such as "bos_token", empty if no file names it."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        given = sides[file].get(name)
        if isinstance(given, dict):
            given = given.get("content")
        if given is None:
            continue
        if not isinstance(given, str):
            raise FormatError(f"{file}: field {name!r} is {shorten(given)}; it must be the text of a token")
        return given
    return ""


def _generation_ids(generation: Json, name: str, vocab_size: int) -> list[int]:
    """The token ids of a field that holds one or several; ids of tokens that the vocabulary lacks are refused."""
    given = generation.get(name)
    listed: list[Any] = given if isinstance(given, list) else [] if given is None else [given]
    for each in listed:
        if type(each) is not int or not 0 <= each < vocab_size:
            raise FormatError(f"generation_config.json: field {name!r} is {shorten(given)}; it must be token ids below "
                              f"{vocab_size}")  # fmt: skip
    return listed


def _is_added(config: Json, name: str, content: Json, place: int, text: str) -> bool:
    """Whether a single text gets a token at its begin (`place` 0) or end (-1).

    The configuration says so or, where it is silent, the post-processor of tokenizer.json.
    """
    given = config.get(name)
    if isinstance(given, bool):
        return given
    processor = content.get("post_processor")
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for step in steps if isinstance(steps, list) else []:
        single = step.get("single") if isinstance(step, dict) else None
        ending = single[place] if isinstance(single, list) and single else None
        special = ending.get("SpecialToken") if isinstance(ending, dict) else None
        if isinstance(special, dict) and special.get("id") == text:
            return True
    return False


def _strips_first_space(content: Json, where: str) -> bool:
    """Whether the file's own decoder takes the space away that encoding put in front."""
    decoder = _optional(content, "decoder", where)
    if decoder is None:
        return False
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, dict):
            raise FormatError(f"{where}: field 'decoder' must hold objects")
        if step.get("type") == "Strip" and step.get("content") == " " and read_int(step, "start", where, 0, 8) == 1:
            return True
        if step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return step.get("add_prefix_space", True) is not False
    return False


def _optional(source: Json, name: str, where: str) -> Json | None:
    return None if source.get(name) is None else read_mapping(source, name, where)


def _flag(source: Json, name: str, where: str) -> bool:
    """An optional true or false; absent and null are false."""
    return False if source.get(name) is None else read_field(source, name, bool, where)
