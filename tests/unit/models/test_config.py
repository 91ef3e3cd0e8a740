"""A configuration is complete, in range and survives JSON, or it is refused with what is allowed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.models.config import ModelConfig, RopeScaling
from subsecond.models.config_gguf import config_from_gguf
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


EVERYTHING = replace(
    TINY,
    rope_scaling=RopeScaling(
        "longrope", 2.0, 32, short_factors=(1.0, 1.5, 2.0, 3.0), long_factors=(2.0, 3.0, 4.0, 5.0)
    ),
    local_rope_theta=500.0,
    window=16,
    window_layers=(1,),
    rope_free_layers=(0,),
    attention_scale=0.5,
    attention_softcap=50.0,
    logit_softcap=30.0,
    embedding_scale=4.0,
    activation="gelu_tanh",
    num_experts=4,
    num_chosen_experts=2,
    has_normalized_experts=False,
    pooling="last",
    num_token_types=2,
)


@pytest.mark.parametrize("config", [TINY, EVERYTHING], ids=["tiny", "everything"])
def test_json_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


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
        ({"llama.rope.scaling.type": "linear"}, r"rope\.scaling\.factor' is missing"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope\.scaling\.factor' is missing"),
        ({"llama.attention.sliding_window": -1}, "allowed are 0 to"),
        ({"llama.attention.sliding_window_pattern": [True, False]}, "but no window"),
        ({"llama.attention.sliding_window_pattern": [True]}, "must be 2 flags"),
        ({"llama.attention.sliding_window_pattern": [1, 0]}, "must be 2 flags"),
        ({"llama.attention.sliding_window_pattern": 0}, "allowed are 1 to 1024"),
    ],
)
def test_wrong_metadata_is_refused(changes: dict[str, object], message: str) -> None:
    metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
    with pytest.raises(FormatError, match=message):
        config_from_gguf(metadata, tiny_shapes(TINY))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_gating_func", 2),
        ("rope.scaling.type", "dynamic"),
        ("residual_scale", 0.5),
        ("logit_scale", 0.1),
        ("attention.causal", False),
        ("attention.value_length", 4),
    ],
)
def test_features_that_change_the_arithmetic_are_refused(key: str, value: object) -> None:
    with pytest.raises(UnsupportedError):
        config_from_gguf(METADATA | {f"llama.{key}": value}, tiny_shapes(TINY))


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "rope_scaling", RopeScaling("linear", 4.0, 64)),
        ({"rope.scale_linear": 2.0}, "rope_scaling", RopeScaling("linear", 2.0, 64)),
        ({"rope.scaling.type": "linear", "rope.scale_linear": 2.0}, "rope_scaling", RopeScaling("linear", 2.0, 64)),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
            "rope_scaling",
            RopeScaling("yarn", 4.0, 16),
        ),
        ({"attention.sliding_window": 32}, "window_layers", (0, 1)),
        ({"attention.sliding_window": 32, "attention.sliding_window_pattern": [False, True]}, "window_layers", (1,)),
        ({"attention.sliding_window": 32, "attention.sliding_window_pattern": [False, False]}, "window", None),
        ({"attention.sliding_window": 32, "attention.sliding_window_pattern": 2}, "window_layers", (0,)),
        ({"expert_count": 8, "expert_used_count": 2}, "num_chosen_experts", 2),
        ({"attn_logit_softcapping": 50.0}, "attention_softcap", 50.0),
        ({"attention.scale": 0.25}, "attention_scale", 0.25),
    ],
)
def test_features_of_the_metadata(changes: dict[str, object], field: str, expected: object) -> None:
    metadata = METADATA | {f"llama.{key}": value for key, value in changes.items()}
    assert getattr(config_from_gguf(metadata, tiny_shapes(TINY)), field) == expected


def as_family(name: str, **changes: object) -> dict[str, object]:
    """The metadata of another architecture, without its rotary base."""
    metadata = {key.replace("llama.", f"{name}."): value for key, value in METADATA.items() if "freq_base" not in key}
    return metadata | {"general.architecture": name} | {f"{name}.{key}": value for key, value in changes.items()}


def test_gemma3_in_other_names() -> None:
    """The names that Ollama gives to what llama.cpp leaves out, and a cap that the model does not have."""
    bases = {"rope.global.freq_base": 1e6, "rope.local.freq_base": 2e4, "final_logit_softcapping": 30.0}
    windows = {"attention.sliding_window": 16, "attention.sliding_window_pattern": [False, True]}
    config = config_from_gguf(as_family("gemma3", **bases, **windows), tiny_shapes(TINY))
    assert (config.rope_theta, config.local_rope_theta, config.logit_softcap) == (1e6, 2e4, None)
    assert (config.window, config.window_layers) == (16, (1,))


def test_gemma3_has_no_rotary_base_to_fall_back_on() -> None:
    with pytest.raises(FormatError, match=r"'gemma3\.rope\.freq_base' is missing"):
        config_from_gguf(as_family("gemma3"), tiny_shapes(TINY))


def test_gemma2_in_the_first_files() -> None:
    config = config_from_gguf(as_family("gemma2", context_length=8192), tiny_shapes(TINY))
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)
    assert (config.window, config.window_layers, config.rope_theta) == (4096, (0,), 10000.0)
    off = {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0, "attention.sliding_window": 0}
    config = config_from_gguf(as_family("gemma2", context_length=8192, **off), tiny_shapes(TINY))
    assert (config.attention_softcap, config.logit_softcap, config.window) == (None, None, None)


def test_a_name_from_hugging_face_leads_to_the_architecture() -> None:
    with pytest.raises(UnsupportedError, match="'mistral' is not supported; the nearest known one is 'llama'"):
        config_from_gguf({"general.architecture": "mistral"}, {})


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    with pytest.raises(UnsupportedError, match=r"'rwkv7' is not supported\. Supported: bert, gemma2"):
        config_from_gguf({"general.architecture": "rwkv7"}, {})


def test_an_unknown_architecture_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UnsupportedError, match=r"'qwen4' is not supported; the nearest known one is 'qwen[23]'"):
        config_from_gguf({"general.architecture": "qwen4"}, {})


def test_features_that_are_switched_off_are_fine() -> None:
    off = {"llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.attention.sliding_window": 64}
    assert config_from_gguf(METADATA | off, tiny_shapes(TINY)) == TINY


def test_a_missing_embedding_is_refused() -> None:
    with pytest.raises(FormatError, match="token_embd"):
        config_from_gguf(METADATA, {})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": True},
        {"num_heads": 4.0},
        {"norm_eps": "small"},
        {"name": 3},
        {"depth": 1},
        {"window_layers": [0.5]},
        {"window_layers": [1]},
        {"rope_free_layers": [7]},
        {"activation": "relu"},
        {"num_experts": 2},
        {"pooling": "max"},
        {"rope_scaling": {"kind": "linear"}},
        {"rope_scaling": 3},
        {"rope_scaling": {"kind": "linear", "factor": 2.0, "original_context": 4, "depth": 1}},
    ],
)
def test_wrong_json_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        ModelConfig.from_json(TINY.to_json() | changes)


def test_a_missing_field_is_refused() -> None:
    content = TINY.to_json()
    del content["head_dim"]
    with pytest.raises(FormatError, match="head_dim"):
        ModelConfig.from_json(content)
