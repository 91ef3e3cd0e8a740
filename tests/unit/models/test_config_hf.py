"""config.json to ModelConfig: every family's fields, what files leave out, and refusals that name the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from subsecond.core.errors import FormatError, SubsecondError, UnsupportedError
from subsecond.models.config import ModelConfig, RopeScaling
from subsecond.models.config_hf import config_from_hf, read_pooling, read_text_config

SHAPES = {"token_embd.weight": (100, 32)}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
    "hidden_act": "silu",
    "rope_theta": 500000.0,
    "rope_scaling": None,
}
YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32}


def read(folder: Path, content: dict[str, Any], shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(content))
    text, family = read_text_config(folder)
    return config_from_hf(text, family, shapes, "a name")


def test_llama(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA) == ModelConfig(
        family="llama",
        name="a name",
        num_layers=12,
        width=32,
        ff_width=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=100,
        context_length=64,
        norm_eps=1e-5,
        rope_theta=500000.0,
        rope_dims=8,
    )


@pytest.mark.parametrize(
    ("model_type", "family"),
    [
        ("llama", "llama"),
        ("mistral", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("smollm3", "smollm3"),
        ("olmo2", "olmo2"),
        ("phi3", "phi3"),
    ],
)
def test_families(tmp_path: Path, model_type: str, family: str) -> None:
    assert read(tmp_path, {**LLAMA, "model_type": model_type}).family == family


def test_experts(tmp_path: Path) -> None:
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2}
    config = read(tmp_path, {**LLAMA, "model_type": "mixtral", **experts})
    assert (config.family, config.num_experts, config.num_chosen_experts) == ("llama", 8, 2)
    assert config.has_normalized_experts and config.ff_width == 48
    experts = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 20}
    config = read(tmp_path, {**LLAMA, "model_type": "qwen3_moe", **experts})
    assert (config.family, config.num_experts, config.num_chosen_experts, config.ff_width) == ("qwen3moe", 16, 4, 20)
    assert not config.has_normalized_experts


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({"rope_type": "linear", "factor": 8}, RopeScaling("linear", 8.0, 64)),
        ({"type": "linear", "factor": 8.0}, RopeScaling("linear", 8.0, 64)),
        (
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            RopeScaling("llama3", 32.0, 32, 1.0, 4.0),
        ),
        (YARN, RopeScaling("yarn", 4.0, 32)),
        ({**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, RopeScaling("yarn", 4.0, 32, attention_factor=1.0)),
        (
            {**YARN, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2},
            RopeScaling("yarn", 4.0, 32, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5),
        ),
        ({"rope_type": "default"}, None),
    ],
)
@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
def test_scaled_positions(tmp_path: Path, section: str, fields: dict[str, Any], scaling: RopeScaling | None) -> None:
    content = {**LLAMA, "rope_scaling": None, section: fields}
    assert read(tmp_path, content).rope_scaling == scaling


def test_longrope_of_phi3(tmp_path: Path) -> None:
    factors = {"short_factor": [1, 1.5, 2, 3], "long_factor": [1.0, 2.0, 4.0, 8.0]}
    for kind in ("su", "yarn", "longrope"):
        content = {**LLAMA, "model_type": "phi3", "rope_scaling": {"type": kind, **factors}}
        config = read(tmp_path, {**content, "original_max_position_embeddings": 16})
        short, long = (1.0, 1.5, 2.0, 3.0), (1.0, 2.0, 4.0, 8.0)
        assert config.rope_scaling == RopeScaling("longrope", 4.0, 16, short_factors=short, long_factors=long)


def test_the_original_context_of_phi3(tmp_path: Path) -> None:
    """What the file says at the top counts before its section, and both before what is usual."""
    content = {**LLAMA, "model_type": "phi3", "max_position_embeddings": 8192}
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    top, section = {"original_max_position_embeddings": 1024}, {"original_max_position_embeddings": 2048}
    for fields, original in (
        ({"rope_scaling": rope}, 4096),
        ({"rope_scaling": rope | section}, 2048),
        ({"rope_scaling": rope | section, **top}, 1024),
    ):
        scaling = read(tmp_path, {**content, **fields}).rope_scaling
        assert scaling is not None and scaling.original_context == original


def test_part_of_a_head_is_rotated(tmp_path: Path) -> None:
    assert read(tmp_path, {**LLAMA, "model_type": "phi3", "partial_rotary_factor": 0.5}).rope_dims == 4
    content = {**LLAMA, "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.25}}
    config = read(tmp_path, content)
    assert (config.rope_dims, config.rope_theta) == (2, 7.0)


def test_windows(tmp_path: Path) -> None:
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": 16}
    assert read(tmp_path, mistral).window_layers == tuple(range(12))
    assert read(tmp_path, {**mistral, "sliding_window": 64}).window is None
    wide = {**mistral, "max_position_embeddings": 32768}
    assert read(tmp_path, {**wide, "sliding_window": None}).window is None
    del wide["sliding_window"]
    assert read(tmp_path, wide).window == 4096
    qwen = {**LLAMA, "model_type": "qwen2", "sliding_window": 16, "max_window_layers": 9}
    assert read(tmp_path, qwen).window is None
    assert read(tmp_path, {**qwen, "use_sliding_window": True}).window_layers == (9, 10, 11)
    kinds = ["sliding_attention", "full_attention"] * 6
    config = read(tmp_path, {**qwen, "use_sliding_window": True, "layer_types": kinds})
    assert (config.window, config.window_layers) == (16, (0, 2, 4, 6, 8, 10))


def test_layers_without_positions(tmp_path: Path) -> None:
    smollm3 = {**LLAMA, "model_type": "smollm3"}
    assert read(tmp_path, smollm3).rope_free_layers == (3, 7, 11)
    assert read(tmp_path, {**smollm3, "no_rope_layer_interval": 5}).rope_free_layers == (4, 9)
    assert read(tmp_path, {**smollm3, "no_rope_layers": [1] * 12}).rope_free_layers == ()
    assert read(tmp_path, {**smollm3, "no_rope_layers": [0, *[1] * 11]}).rope_free_layers == (0,)


def test_gemma2(tmp_path: Path) -> None:
    content = {**LLAMA, "model_type": "gemma2", "sliding_window": 16, "hidden_activation": "gelu_pytorch_tanh"}
    config = read(tmp_path, {**content, "head_dim": 8, "query_pre_attn_scalar": 25})
    assert config.attention_scale == pytest.approx(0.2)
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)
    assert config.window_layers == (0, 2, 4, 6, 8, 10) and config.activation is None
    assert config.embedding_scale == pytest.approx(32**0.5)
    assert read(tmp_path, {**content, "final_logit_softcapping": None}).logit_softcap is None
    assert read(tmp_path, {**content, "sliding_window": None}).window is None


def test_gemma3_for_images_is_read_as_a_text_model(tmp_path: Path) -> None:
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 12,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    content = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    config = read(tmp_path, content, {"token_embd.weight": (262208, 2560)})
    assert (config.family, config.num_heads, config.num_kv_heads, config.head_dim) == ("gemma3", 8, 4, 256)
    assert (config.rope_theta, config.local_rope_theta, config.context_length) == (1e6, 1e4, 131072)
    assert config.rope_scaling == RopeScaling("linear", 8.0, 131072)
    assert config.window == 1024 and config.window_layers == (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)
    rope = {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_type": "default", "rope_theta": 7e3}}
    newer = {**text, "rope_scaling": None, "rope_parameters": rope}
    config = read(tmp_path, {**content, "text_config": newer}, {"token_embd.weight": (262208, 2560)})
    assert (config.rope_theta, config.local_rope_theta, config.rope_scaling) == (5e5, 7e3, None)


def test_gpt2_and_bert(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 100}
    config = read(tmp_path, {**gpt2, "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-4})
    assert (config.ff_width, config.rope_dims, config.activation, config.norm_eps) == (128, 0, None, 1e-4)
    bert = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "rope_theta")}
    bert |= {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "position_embedding_type": "absolute"}
    config = read(tmp_path, bert, {**SHAPES, "token_types.weight": (2, 32)})
    assert (config.num_kv_heads, config.pooling, config.num_token_types) == (4, "mean", 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported; the nearest known one"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic', which is not supported; supported are"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "truncate = false"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}}, "'mrope_section'"),
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "layers with and without experts"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ({"logit_scale": 0.5}, "logit_scale = 0.5"),
        ({"sliding_window": 8, "layer_types": ["chunked_attention"] * 12}, "'chunked_attention' are not supported"),
    ],
)
def test_what_would_change_the_answer_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(tmp_path, {**LLAMA, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "32"}, "it must be an integer"),
        ({"num_hidden_layers": 10**9}, "allowed are 1 to 1024"),
        ({"vocab_size": 99}, "vocab_size is 99, but the embedding table has 100 rows"),
        ({"hidden_size": 30}, "no multiple of num_attention_heads"),
        ({"rope_theta": 1e400}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"rope_scaling": {**YARN, "factor": -1.0}}, "factor is -1.0"),
        ({"rope_scaling": "yarn"}, "must be an object"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": ["1"]}}, "must be a list of numbers"),
        ({"partial_rotary_factor": 0}, "must be above 0"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 1]}, "a list of at least 12"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": -1, "head_dim": 8}, "must be a positive number"),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, "a list of 12 texts"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(tmp_path, {**LLAMA, **fields})


@pytest.mark.parametrize(
    "content",
    [b"[1]", b"{", b"\xff", b"[" * 100_000, b'{"model_type":"llama","model_type":"llama"}', b" " * (3 * 2**20)],
)
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SubsecondError, match=r"config\.json"):
        read_text_config(tmp_path)


def write_modules(folder: Path, pooling: dict[str, Any], *more: str, path: str = "1_Pooling") -> Path:
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling", *more]
    modules = [{"idx": n, "type": kind, "path": path if n == 1 else ""} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_pooling(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None
    modes = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    assert read_pooling(write_modules(tmp_path, modes, "sentence_transformers.models.Normalize")) == "mean"
    assert read_pooling(write_modules(tmp_path, {"pooling_mode_cls_token": True})) == "first"
    assert read_pooling(write_modules(tmp_path, {"pooling_mode_lasttoken": True})) == "last"
    assert read_pooling(write_modules(tmp_path, {"pooling_mode": "cls"})) == "first"


def test_other_poolings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="pooling_mode_max_tokens"):
        read_pooling(write_modules(tmp_path, {"pooling_mode_max_tokens": True}))
    with pytest.raises(UnsupportedError, match="'Dense' after the model"):
        read_pooling(write_modules(tmp_path, {"pooling_mode": "mean"}, "sentence_transformers.models.Dense"))
    with pytest.raises(FormatError, match="no name of a folder beside it"):
        read_pooling(write_modules(tmp_path, {"pooling_mode": "mean"}, path="../1_Pooling"))
