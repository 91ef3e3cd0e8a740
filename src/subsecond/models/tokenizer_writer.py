"""Writes a tokenizer as the files of a Hugging Face folder, for every reader of tokenizer.json; encodes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping

from subsecond.models.token_table import is_utf8
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.vocabulary import ModelKind, Vocabulary
from subsecond.models.wordpiece import MAX_WORD_CHARS

Json = dict[str, object]
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def tokenizer_files(tokenizer: Tokenizer, chat_template: str | None, max_tokens: int) -> dict[str, bytes]:
    """The files by name: tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja.

    `max_tokens` is the context of the model. Tokens whose bytes are not UTF-8 have no place in JSON and are left out.
    FormatError when merges and tokens do not fit together.
    """
    files = {
        "tokenizer.json": _encode(_content(tokenizer), is_indented=False),
        "tokenizer_config.json": _encode(_config(tokenizer, max_tokens)),
        "generation_config.json": _encode(_generation(tokenizer)),
    }
    if chat_template is not None:
        files["chat_template.jinja"] = chat_template.encode()
    return files


def _encode(content: Json, *, is_indented: bool = True) -> bytes:
    separators = None if is_indented else (",", ":")
    text = json.dumps(content, ensure_ascii=False, indent=2 if is_indented else None, separators=separators)
    return text.encode()


def _content(tokenizer: Tokenizer) -> Json:
    vocabulary = tokenizer.vocabulary
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": vocabulary.words.normalizer,
        "pre_tokenizer": vocabulary.words.pre_tokenizer,
        "post_processor": _post_processor(vocabulary),
        "decoder": _decoder(vocabulary),
        "model": _model(tokenizer),
    }


def _added_tokens(vocabulary: Vocabulary) -> list[Json]:
    special = vocabulary.special
    added = []
    for text, token_id in sorted(vocabulary.held_out.items(), key=lambda item: item[1]):
        strips_left, strips_right = special.strips.get(text, (False, False))
        if is_utf8(text):
            added.append(
                {
                    "id": token_id,
                    "content": text,
                    "single_word": False,
                    "lstrip": strips_left,
                    "rstrip": strips_right,
                    "normalized": False,
                    "special": text in special.control,
                }
            )
    return added


def _model(tokenizer: Tokenizer) -> Json:
    vocabulary, table = tokenizer.vocabulary, tokenizer.table
    unknown = vocabulary.special.unk_id
    texts = {text: token_id for token_id, text in enumerate(vocabulary.tokens) if text and is_utf8(text)}
    unknown_text = None if unknown is None else vocabulary.tokens[unknown]
    if vocabulary.model is ModelKind.WORDPIECE:
        return {
            "type": "WordPiece",
            "unk_token": unknown_text,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": MAX_WORD_CHARS,
            "vocab": texts,
        }
    is_bytes = vocabulary.model is ModelKind.BYTE_LEVEL
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if is_bytes else unknown_text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": not is_bytes,
        "byte_fallback": not is_bytes and all(table.find(f"<0x{byte:02X}>") is not None for byte in range(256)),
        "ignore_merges": vocabulary.words.ignore_merges,
        "vocab": texts,
        "merges": [f"{left} {right}" for left, right in table.merges() if is_utf8(left) and is_utf8(right)],
    }


def _decoder(vocabulary: Vocabulary) -> Json:
    if vocabulary.model is ModelKind.WORDPIECE:
        return {"type": "WordPiece", "prefix": "##", "cleanup": True}
    if vocabulary.model is ModelKind.BYTE_LEVEL:
        return dict(_BYTE_LEVEL)
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if vocabulary.strips_first_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _post_processor(vocabulary: Vocabulary) -> Json | None:
    """What a text gets at its begin and end."""
    begin, end = _text_ends(vocabulary)
    if begin is None and end is None:
        return dict(_BYTE_LEVEL) if vocabulary.model is ModelKind.BYTE_LEVEL else None

    def around(name: str, type_id: int, *, begins: bool) -> list[Json]:
        steps: list[Json] = [{"Sequence": {"id": name, "type_id": type_id}}]
        if begin is not None and begins:
            steps.insert(0, {"SpecialToken": {"id": vocabulary.tokens[begin], "type_id": type_id}})
        if end is not None:
            steps.append({"SpecialToken": {"id": vocabulary.tokens[end], "type_id": type_id}})
        return steps

    texts = {vocabulary.tokens[each]: each for each in (begin, end) if each is not None}
    is_bert = vocabulary.model is ModelKind.WORDPIECE
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0, begins=True),
        "pair": [*around("A", 0, begins=True), *around("B", 1, begins=not is_bert)],
        "special_tokens": {text: {"id": text, "ids": [each], "tokens": [text]} for text, each in texts.items()},
    }


def _text_ends(vocabulary: Vocabulary) -> tuple[int | None, int | None]:
    """The tokens that a text is put between."""
    special = vocabulary.special
    if vocabulary.model is ModelKind.WORDPIECE:
        return special.cls_id, special.sep_id
    end = special.eos_ids[0] if special.add_eos and special.eos_ids else None
    return special.bos_id if special.add_bos else None, end


def _config(tokenizer: Tokenizer, max_tokens: int) -> Json:
    vocabulary = tokenizer.vocabulary
    special = vocabulary.special
    roles: Mapping[str, int | None] = {
        "bos_token": special.bos_id,
        "eos_token": special.eos_ids[0] if special.eos_ids else None,
        "unk_token": special.unk_id,
        "cls_token": special.cls_id,
        "sep_token": special.sep_id,
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": special.add_bos,
        "add_eos_token": special.add_eos,
        **{name: vocabulary.tokens[each] for name, each in roles.items() if each is not None},
    }


def _generation(tokenizer: Tokenizer) -> Json:
    content: Json = {"_from_model_config": True}
    if tokenizer.bos_id is not None:
        content["bos_token_id"] = tokenizer.bos_id
    if tokenizer.eos_ids:
        content["eos_token_id"] = tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids)
    return content
