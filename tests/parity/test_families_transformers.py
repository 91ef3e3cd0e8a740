"""Every family against transformers: a small random model, saved as a folder, opened and run with torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from subsecond.backends.batch import Float32, ForwardBatch
from subsecond.backends.torch import TorchBackend
from subsecond.graph.graph import Graph
from subsecond.graph.passes.pipeline import PASSES, passes_until
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.families.registry import build_graph

NUM_TOKENS = 30
VOCAB_SIZE = 67
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 24}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.0, 2.0, 3.5, 6.0],
}
FULL, LOCAL = "full_attention", "sliding_attention"
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA = {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 7, "hidden_activation": "gelu_pytorch_tanh"}
PHI3 = {"hidden_size": 64, "num_attention_heads": 4, "partial_rotary_factor": 0.5}
GEMMA3_ROPE = {
    FULL: {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    LOCAL: {"rope_type": "default", "rope_theta": 300.0},
}


@dataclass(frozen=True)
class Family:
    """A class of transformers, what its configuration has beside `SIZES`, and the shard size it is saved with."""

    name: str
    options: dict[str, Any]
    shard_size: str = "1GB"

    def build(self) -> Any:
        """The model, every parameter random, its attention neither flat nor sharp."""
        names = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"), "GPT2": ("GPT2Config", "GPT2LMHeadModel")}
        config_name, model_name = names.get(self.name, (f"{self.name}Config", f"{self.name}ForCausalLM"))
        if self.name == "Bert":
            model_name = "BertModel"
        sizes = {} if self.name == "GPT2" else dict(SIZES)
        if self.name == "Bert":
            del sizes["num_key_value_heads"]
        config = getattr(transformers, config_name)(**{**sizes, **self.options})
        config._attn_implementation = "eager"
        model = getattr(transformers, model_name)(config).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = "norm" in name.lower() or "ln_" in name
                spread = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else 0.25)
                is_one = is_norm and name.endswith("weight") and not self.name.startswith("Gemma")
                parameter.copy_(spread + is_one)
        return model


FAMILIES = {
    "llama": Family("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama-llama3": Family("Llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}, "20KB"),
    "llama-linear": Family("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama-yarn": Family("Llama", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "mistral": Family("Mistral", {"sliding_window": 7, "head_dim": 10}),
    "mixtral": Family("Mixtral", {**EXPERTS, "sliding_window": None}),
    "qwen2": Family("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": Family("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": Family("Qwen3", {"head_dim": 10}),
    "qwen3-moe": Family("Qwen3Moe", {**EXPERTS, "head_dim": 10, "moe_intermediate_size": 24, "norm_topk_prob": True}),
    "qwen3-moe-unnormalized": Family("Qwen3Moe", {**EXPERTS, "head_dim": 10, "moe_intermediate_size": 24}),
    "smollm3": Family("SmolLM3", {"num_hidden_layers": 4}),
    "smollm3-all-rotary": Family("SmolLM3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 1]}),
    "gemma2": Family("Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    "gemma3": Family("Gemma3", {**GEMMA, "layer_types": [LOCAL, FULL, LOCAL], "rope_parameters": GEMMA3_ROPE}),
    "phi3": Family("Phi3", {**PHI3, "sliding_window": 9}),
    "phi3-longrope": Family("Phi3", {**PHI3, "rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "phi3-shortrope": Family("Phi3", {**PHI3, "rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "olmo2": Family("Olmo2", {}),
    "gpt2": Family("GPT2", {"vocab_size": VOCAB_SIZE, "n_embd": 36, "n_layer": 2, "n_head": 6, "n_positions": 40}),
    "bert": Family("Bert", {}),
}

# An encoder sees its whole text at once, so its text is never cut.
CUTS = [(name, chunk) for name in FAMILIES for chunk in (NUM_TOKENS, 11) if name != "bert" or chunk == NUM_TOKENS]


@dataclass(frozen=True)
class Case:
    """A saved model, a text, and what transformers makes of it [NUM_TOKENS, vocabulary or width]."""

    opened: Checkpoint
    tokens: np.ndarray[Any, np.dtype[np.int32]]
    expected: Float32

    def run(self, pass_name: str, chunk: int) -> Float32:
        """The same with the torch backend, in steps of `chunk` rows."""
        return self.run_graph(passes_until(self.opened.graph(), pass_name), chunk)

    def run_graph(self, graph: Graph, chunk: int) -> Float32:
        """The same with another graph."""
        backend = TorchBackend(graph, self.opened.weights, num_blocks=8, block_tokens=4, max_rows=NUM_TOKENS)
        blocks = np.array([[5, 2, 7, 0, 3, 6, 1, 4]], np.int32)
        rows = []
        for start in range(0, NUM_TOKENS, chunk):
            end = min(start + chunk, NUM_TOKENS)
            positions = np.arange(start, end, dtype=np.int32)
            nothing, every = np.zeros_like(positions), positions - start
            rows.append(backend.forward(ForwardBatch(self.tokens[start:end], positions, nothing, blocks, every)))
        return np.concatenate(rows)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Operators this small only wait for each other's threads; and no bars while models are saved."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.ERROR)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    cases: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in cases:
            cases[name] = make_case(FAMILIES[name], tmp_path_factory.mktemp(name))
        return cases[name]

    return make


def make_case(family: Family, folder: Path) -> Case:
    model = family.build()
    model.save_pretrained(folder, max_shard_size=family.shard_size)
    tokens = np.random.default_rng(8).integers(3, VOCAB_SIZE, NUM_TOKENS, dtype=np.int32)
    with torch.no_grad():
        output = model(torch.from_numpy(tokens.astype(np.int64))[None])
    expected = output.last_hidden_state if family.name == "Bert" else output.logits
    return Case(open_checkpoint(folder), tokens, expected[0].numpy())


@pytest.mark.parametrize("pass_name", ["none", PASSES[-1][0]])
@pytest.mark.parametrize(("name", "chunk"), CUTS)
def test_a_folder_computes_what_transformers_does(
    case_of: Callable[[str], Case], name: str, chunk: int, pass_name: str
) -> None:
    case = case_of(name)
    given = case.run(pass_name, chunk)
    assert given.shape == case.expected.shape
    assert np.abs(given - case.expected).max() <= 1e-4 * np.ptp(case.expected)


def test_a_model_in_shards_is_in_shards(case_of: Callable[[str], Case]) -> None:
    assert len(list(case_of("llama-llama3").opened.path.glob("*.safetensors"))) > 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama-llama3", {"rope_scaling": None}),
        ("llama-linear", {"rope_scaling": None}),
        ("llama-yarn", {"rope_scaling": None}),
        ("phi3-longrope", {"context_length": 16}),  # which makes the short factors the ones to use
        ("mistral", {"window": 8}),
        ("qwen2-window", {"window_layers": (0, 1)}),
        ("gemma2", {"attention_softcap": None}),
        ("gemma2", {"logit_softcap": None}),
        ("gemma3", {"window_layers": (0, 1)}),
        ("gemma3", {"local_rope_theta": 5000.0}),
        ("gemma3", {"attention_scale": 10**-0.5}),
        ("smollm3", {"rope_free_layers": ()}),
        ("phi3", {"rope_dims": 16}),
        ("qwen3-moe-unnormalized", {"has_normalized_experts": True}),
        ("gpt2", {"activation": "gelu"}),
    ],
)
def test_a_wrong_configuration_would_show(case_of: Callable[[str], Case], name: str, change: dict[str, Any]) -> None:
    case = case_of(name)
    wrong = build_graph(replace(case.opened.config, **change), case.opened.shapes)
    assert np.abs(case.run_graph(wrong, NUM_TOKENS) - case.expected).max() > 1e-4 * np.ptp(case.expected)
