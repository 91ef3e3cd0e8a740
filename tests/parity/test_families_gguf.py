"""Every family as a GGUF file, named and ordered as converters write it, computes what the Hugging Face folder does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond.backends import native
from subsecond.backends.batch import ForwardBatch
from subsecond.graph.ops import Rope
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.config import ModelConfig
from subsecond.models.families.registry import find_family
from tests.parity.test_families_transformers import FAMILIES, Case, make_case, quiet

__all__ = ["quiet"]

# The files do not say which layers have a window or no positions; readers know it, so the cases have to be usual.
CASES = (
    "llama",
    "llama-llama3",
    "llama-linear",
    "llama-yarn",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "smollm3",
    "gemma2",
    "phi3",
    "phi3-longrope",
    "phi3-shortrope",
    "olmo2",
    "gpt2",
    "bert",
)
NUM_TOKENS = 30


def write_gguf(path: Path, opened: Checkpoint) -> Path:
    """The model of a folder as a GGUF file, with the keys that llama.cpp's converter writes."""
    config = opened.config
    writer = gguf.GGUFWriter(path, config.family)
    writer.add_name("tiny")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    if find_family(config.family).form.norm == "layer":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.rope_dims:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.rope_dims)
        writer.add_rope_freq_base(config.rope_theta)
    if config.window:
        writer.add_sliding_window(config.window)
    if config.attention_softcap:
        writer.add_attn_logit_softcapping(config.attention_softcap)
    if config.logit_softcap:
        writer.add_final_logit_softcapping(config.logit_softcap)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_chosen_experts)
        writer.add_expert_feed_forward_length(config.ff_width)
    if config.pooling:
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    for name, values in {**rope_scaling(writer, config), **tensors(opened)}.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rope_scaling(writer: Any, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Writes the keys of scaled positions; returns the tensors that some kinds have instead."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling.kind == "llama3":
        # converters evaluate the rule and store what the frequencies are divided by
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        wavelengths = 2 * np.pi * config.rope_theta ** (np.arange(0, config.rope_dims, 2) / config.rope_dims)
        smooth = np.clip((scaling.original_context / wavelengths - low) / (high - low), 0, 1)
        return {"rope_freqs.weight": (1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32)}
    if scaling.kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
        growth = config.context_length / scaling.original_context
        if growth > 1:
            writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(growth) / np.log(scaling.original_context))))
        return {
            "rope_factors_long.weight": np.array(scaling.long_factors, np.float32),
            "rope_factors_short.weight": np.array(scaling.short_factors, np.float32),
        }
    writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
    return {}


def tensors(opened: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """The weights by name; of families whose files pair neighbouring channels, queries and keys in that order."""
    config, found = opened.config, {}
    for name in opened.shapes:
        values = opened.weights.dequantize(name)
        part = name.split(".")[-2]
        if find_family(config.family).gguf_pairing == "interleaved" and part in ("attn_q", "attn_k"):
            num_heads = config.num_heads if part == "attn_q" else config.num_kv_heads
            halves = values.reshape(num_heads, 2, config.head_dim // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        found[name] = values
    return found


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Checkpoint]:
    folder = tmp_path_factory.mktemp(request.param)
    family = FAMILIES[request.param]
    if request.param == "gemma2":  # the scale of scores is not in the file either
        family = replace(family, options={**family.options, "query_pre_attn_scalar": 10})
    made = make_case(family, folder)
    return made, open_checkpoint(write_gguf(folder / "model.gguf", made.opened))


def test_a_gguf_file_computes_what_transformers_does(case: tuple[Case, Checkpoint]) -> None:
    made, opened = case
    given = Case(opened, made.tokens, made.expected).run("none", NUM_TOKENS)
    assert np.abs(given - made.expected).max() <= 1e-4 * np.ptp(made.expected)


def test_tensors_have_the_names_of_the_format(case: tuple[Case, Checkpoint]) -> None:
    _, opened = case
    (arch,) = (each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == opened.config.family)
    known = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[arch]}
    for name in opened.shapes:
        plain = name.rpartition(".")[0]
        layer = next((part for part in plain.split(".") if part.isdecimal()), None)
        assert (plain if layer is None else plain.replace(f".{layer}.", ".{bid}.")) in known


def test_gemma3_alternates_and_has_two_bases(tmp_path: Path) -> None:
    """Six layers: the last is global. Its files say neither that nor the local base."""
    options = FAMILIES["gemma3"].options
    ropes = {kind: {**rope, "rope_theta": 10000.0} for kind, rope in options["rope_parameters"].items()}
    usual = {
        "num_hidden_layers": 6,
        "query_pre_attn_scalar": 10,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "rope_parameters": ropes,
    }
    made = make_case(replace(FAMILIES["gemma3"], options={**options, **usual}), tmp_path)
    opened = open_checkpoint(write_gguf(tmp_path / "model.gguf", made.opened))
    assert opened.config.window_layers == (0, 1, 2, 3, 4)
    assert opened.config.local_rope_theta == 10000.0
    given = Case(opened, made.tokens, made.expected).run("none", NUM_TOKENS)
    assert np.abs(given - made.expected).max() <= 1e-4 * np.ptp(made.expected)


def test_the_form_of_longrope_follows_the_context_that_is_asked_for(tmp_path: Path) -> None:
    made = make_case(FAMILIES["phi3-longrope"], tmp_path)
    for opened in (made.opened, open_checkpoint(write_gguf(tmp_path / "model.gguf", made.opened))):
        short, long = (
            next(op.rotary for op in opened.graph(tokens).ops if isinstance(op, Rope)) for tokens in (16, 17)
        )
        assert short != long
        assert long == next(op.rotary for op in opened.graph().ops if isinstance(op, Rope))


def test_an_artifact_serves_short_and_long_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTokenizer:
        vocab_size = 1

        def save(self, path: Path) -> None:
            path.write_text("{}")

    made = make_case(FAMILIES["phi3-longrope"], tmp_path / "folder")
    path = write_gguf(tmp_path / "model.gguf", made.opened)
    monkeypatch.setattr(Checkpoint, "tokenizer", NoTokenizer())
    native.write_artifact(open_checkpoint(path), tmp_path)
    packed = open_checkpoint(path)
    assert packed.artifact is not None
    rows = np.arange(NUM_TOKENS, dtype=np.int32)
    batch = ForwardBatch(made.tokens, rows, np.zeros_like(rows), np.zeros((1, 1), np.int32), rows)
    for context_tokens, is_long in ((16, False), (64, True)):
        backend = native.load(packed, isa="scalar", num_threads=1, context_tokens=context_tokens, max_rows=32)
        error = np.abs(backend.forward(batch) - made.expected).max()
        # keys and values are rounded to 11 bits; the other factors give errors many times that
        assert (error <= 3e-3 * np.ptp(made.expected)) == is_long
        backend.close()
