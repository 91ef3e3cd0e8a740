"""A tiny byte-level vocabulary for tests: all 256 bytes, a few merges and special tokens, as GGUF metadata."""

from __future__ import annotations

from collections.abc import Sequence

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġ t", "Ġt he", "Ã ©", "< |"]
SPECIAL = {"<|end|>": CONTROL, "<|start|>": CONTROL, "<|start|>!": CONTROL, "<tool>": USER_DEFINED, "[PAD]": UNUSED}


def byte_characters() -> list[str]:
    """The printable stand-in of every byte, written out independently of the product."""
    ranges = [range(33, 127), range(161, 173), range(174, 256)]
    kept = [byte for each in ranges for byte in each]
    shifted = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) if byte in kept else chr(256 + shifted.index(byte)) for byte in range(256)]


def token_texts(content: dict[str, object]) -> list[str]:
    """The tokens of metadata, by id."""
    tokens = content["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    return tokens


def metadata(
    *,
    pre: str = "gpt-2",
    merges: Sequence[str] = MERGES,
    extra_tokens: Sequence[str] = (),
    **changes: object,
) -> dict[str, object]:
    """Metadata with ids: 0-255 bytes, then merges in order, then SPECIAL in order, then `extra_tokens`."""
    tokens = [*byte_characters(), *(merge.replace(" ", "") for merge in merges)]
    kinds = [NORMAL] * len(tokens) + list(SPECIAL.values()) + [NORMAL] * len(extra_tokens)
    tokens += [*SPECIAL, *extra_tokens]
    content: dict[str, object] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": kinds,
        "merges": list(merges),
        "bos_token_id": tokens.index("<|start|>"),
        "eos_token_id": tokens.index("<|end|>"),
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in content.items() if value is not None}
