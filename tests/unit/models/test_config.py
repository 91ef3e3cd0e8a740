"""A configuration is complete, in range and survives JSON, or it is refused with what is allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.models.config import ModelConfig, config_from_gguf
from tests.unit.tiny_decoder import TINY, tiny_shapes

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 24,
    "llama.feed_forward_length": 40,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 8,
    "llama.attention.value_length": 8,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": 8,
    "llama.vocab_size": 50,
}


def test_gguf_metadata_gives_the_configuration() -> None:
    assert config_from_gguf(METADATA, tiny_shapes(TINY)) == TINY


def test_defaults_follow_from_the_other_numbers() -> None:
    left_out = ("head_count_kv", "key_length", "value_length", "freq_base", "dimension_count", "vocab_size")
    metadata = {key: value for key, value in METADATA.items() if not key.endswith(left_out)}
    config = config_from_gguf(metadata, tiny_shapes(TINY))
    assert config == replace(TINY, num_kv_heads=4, head_dim=6, rope_dims=6)


def test_json_round_trip() -> None:
    assert ModelConfig.from_json(TINY.to_json()) == TINY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.block_count": None}, "block_count.*missing"),
        ({"llama.block_count": 0}, "allowed are 1 to 1024"),
        ({"llama.block_count": "2"}, "must be an integer"),
        ({"llama.embedding_length": 2**40}, "allowed are"),
        ({"llama.attention.head_count": 0}, "allowed are 1"),
        ({"llama.attention.head_count_kv": 3}, "multiple"),
        ({"llama.attention.head_count_kv": [2, 2]}, "must be an integer"),
        ({"llama.attention.key_length": None, "llama.embedding_length": 25}, "no multiple of head_count"),
        ({"llama.attention.key_length": 7, "llama.attention.value_length": 7}, "even"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "norm_eps"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "norm_eps"),
        ({"llama.rope.freq_base": float("inf")}, "rope_theta"),
        ({"llama.rope.dimension_count": 16}, "at most head_dim"),
        ({"llama.vocab_size": 49}, "has 50 rows"),
        ({"general.architecture": None}, "general.architecture.*missing"),
    ],
)
def test_wrong_metadata_is_refused(changes: dict[str, object], message: str) -> None:
    metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
    with pytest.raises(FormatError, match=message):
        config_from_gguf(metadata, tiny_shapes(TINY))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 8),
        ("rope.scaling.type", "yarn"),
        ("attention.sliding_window", 32),
        ("attention.causal", False),
        ("attention.value_length", 4),
    ],
)
def test_features_that_change_the_arithmetic_are_refused(key: str, value: object) -> None:
    with pytest.raises(UnsupportedError):
        config_from_gguf(METADATA | {f"llama.{key}": value}, tiny_shapes(TINY))


def test_features_that_are_switched_off_are_fine() -> None:
    off = {"llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.attention.sliding_window": 64}
    assert config_from_gguf(METADATA | off, tiny_shapes(TINY)) == TINY


def test_a_missing_embedding_is_refused() -> None:
    with pytest.raises(FormatError, match="token_embd"):
        config_from_gguf(METADATA, {})


@pytest.mark.parametrize(
    "changes", [{"num_heads": True}, {"num_heads": 4.0}, {"norm_eps": "small"}, {"name": 3}, {"depth": 1}]
)
def test_wrong_json_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        ModelConfig.from_json(TINY.to_json() | changes)


def test_a_missing_field_is_refused() -> None:
    content = TINY.to_json()
    del content["rope_dims"]
    with pytest.raises(FormatError, match="rope_dims"):
        ModelConfig.from_json(content)
