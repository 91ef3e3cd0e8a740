"""Reads the vocabulary of a Hugging Face folder: tokenizer.json and the small files beside it; encodes nothing.

Every field is checked before use. What a model does to text has to consist of known steps; anything else is refused
rather than skipped, because it would change the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import read_int, read_mapping, shorten
from subsecond.formats.json_file import read_json_object
from subsecond.models.packed_vocabulary import PackedTokens
from subsecond.models.token_table import PackedTable, PackedTexts
from subsecond.models.tokenizer_content import TokenizerContent, read_flag, read_tokenizer_content
from subsecond.models.vocabulary import END_TEXTS, ModelKind, SpecialTokens, Vocabulary, WordRule, split_user_defined
from subsecond.models.word_cutting import rule_steps
from subsecond.models.wordpiece import MAX_WORD_CHARS

FILE_NAME = "tokenizer.json"
_SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")

Json = Mapping[str, object]


def read_folder_vocabulary(folder: Path) -> tuple[Vocabulary, PackedTable]:
    """Read and check it; the merges are in the table alone.

    Raises:
        InputError: there is no tokenizer.json, or a file cannot be read.
        FormatError: a file is damaged.
        UnsupportedError: the model is Unigram, or has an option that is not supported.
    """
    path = folder / FILE_NAME
    where = str(path)
    content = read_tokenizer_content(path)
    sides: dict[str, Json] = {
        name: read_json_object(folder / name) if (folder / name).is_file() else {} for name in _SIDE_FILES
    }
    model, sections = content.model, content.sections
    rule = WordRule(
        _optional(sections, "normalizer", where),
        _optional(sections, "pre_tokenizer", where),
        read_flag(model, "ignore_merges", where),
    )
    kind = _model_kind(model, rule, where)
    if content.vocab is None:
        raise FormatError(f"{where}: field 'vocab' is {shorten(model.get('vocab'))}; it must be an object of token ids")
    if content.merges is None and kind is not ModelKind.WORDPIECE:
        raise FormatError(f"{where}: field 'merges' is {shorten(model.get('merges'))}; it must be a list")
    packed = PackedTokens.pack(content.vocab, content.added, where)
    content.vocab = None  # to free its memory
    special = _read_special(content, kind, packed.table, sides)
    held_out = {*special.control, *special.user_defined, *special.plain}
    table = packed.finish(held_out, None if kind is ModelKind.WORDPIECE else content.merges, where)
    if kind is not ModelKind.WORDPIECE:
        _check_unknown(model, kind, packed.table, where)
    strips = kind is ModelKind.WORDPIECE or _strips_first_space(sections, where)
    return Vocabulary(kind, PackedTexts(table), rule, special, strips_first_space=strips), table


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


def _check_unknown(model: Json, kind: ModelKind, table: PackedTable, where: str) -> None:
    """Refuse a model whose unknown characters would need what merging does not offer."""
    byte_fallback = read_flag(model, "byte_fallback", where)
    has_bytes = all(table.find(f"<0x{byte:02X}>") is not None for byte in range(256))
    if kind is ModelKind.SENTENCEPIECE:
        if byte_fallback != has_bytes:
            raise UnsupportedError(f"{where}: byte_fallback is {byte_fallback}, but it has {has_bytes} byte tokens")
        if not has_bytes and model.get("unk_token") is not None and not read_flag(model, "fuse_unk", where):
            raise UnsupportedError(f"{where}: unknown characters become one token each; supported is one for a run")
    elif byte_fallback and has_bytes:
        raise UnsupportedError(f"{where}: the model is byte-level and falls back to bytes as well")


def _read_special(
    content: TokenizerContent, kind: ModelKind, table: PackedTable, sides: Mapping[str, Json]
) -> SpecialTokens:
    def find(text: object) -> int | None:
        return table.find(text) if isinstance(text, str) else None

    model, added, tokens = content.model, [each for each in content.added if each.text], PackedTexts(table)
    ids = {each.text: token_id for each in added if (token_id := find(each.text)) is not None}
    control = {each.text: ids[each.text] for each in added if each.is_special}
    user_defined = {each.text: ids[each.text] for each in added if each.text not in control}
    roles = {name: find(_role_text(sides, name)) for name in ("bos_token", "eos_token", "cls_token", "sep_token")}
    roles["unk_token"] = find(model.get("unk_token"))
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
    flags = {each.text: each.strips for each in added}
    config = sides["tokenizer_config.json"]
    eos_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))
    return SpecialTokens(
        control=control,
        user_defined=user_defined,
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=bos_id is not None and _is_added(config, "add_bos_token", content.sections, 0, tokens[bos_id]),
        add_eos=bool(eos_ids) and _is_added(config, "add_eos_token", content.sections, -1, tokens[eos_ids[0]]),
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
