"""Values in the middle of the served plan against those of the reference, and gradients against differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from subsecond import _native
from subsecond.backends.native import NativeTaps
from subsecond.backends.native.weights import PackedMatrix, PackedWeights
from subsecond.backends.torch import TorchBackend
from subsecond.graph.taps import residual_values
from subsecond.measure.attribution import answer_batch
from subsecond.measure.layers import layer_findings, summarize_layers, window_divergence
from tests.parity.kernel_cases import ISAS
from tests.parity.native_models import CAUSAL_MODELS, StoredModel, batch_of, stored_model

TOKENS = np.random.default_rng(5).integers(0, 301, 70, dtype=np.int32)
BLOCKS = np.arange(3, dtype=np.int32)


@pytest.mark.parametrize("family", CAUSAL_MODELS)
@pytest.mark.parametrize("isa", ISAS)
def test_values_are_those_of_the_reference(isa: str, family: str) -> None:
    model = stored_model(family)
    names = residual_values(model.graph)
    assert len(names) == 5  # two layers of two parts, and what they begin with
    taps = NativeTaps(model.native(isa), names, max_rows=70, num_tokens=70)
    batch = batch_of([(TOKENS, 0, BLOCKS)])
    found, expected = taps.values(batch), model.reference().values(batch, names)
    bound = 0.03 if isa == "amx" else 5e-3
    for name in names:
        assert found[name].shape == expected[name].shape == (70, 256)
        is_off = np.abs(found[name] - expected[name]).max(-1) > bound * np.ptp(expected[name])
        assert is_off.mean() <= (0.1 if isa == "amx" and model.has_experts else 0.0), name
    assert np.ptp(found[names[0]]) > 0


def test_fewer_rows_and_later_steps_give_the_same_bits() -> None:
    model = stored_model("llama")
    names = residual_values(model.graph)
    taps = NativeTaps(model.native(_native.available_isas()[0]), names, max_rows=70, num_tokens=70)
    whole = {name: values.copy() for name, values in taps.values(batch_of([(TOKENS, 0, BLOCKS)])).items()}
    for start, end in ((0, 33), (33, 70)):
        part = taps.values(batch_of([(TOKENS[start:end], start, BLOCKS)]))
        for name in names:
            np.testing.assert_array_equal(part[name], whole[name][start:end])


def faulty(model: StoredModel, name: str, factor: float) -> StoredModel:
    """The model with one packed matrix whose scales are wrong by `factor`."""
    matrix = model.packed.matrices[name]
    values = np.ascontiguousarray(model.decoded[name].numpy() * np.float32(factor))
    data = np.zeros(_native.packed_size("F32", matrix.num_outputs, matrix.num_inputs), np.uint8)
    _native.pack_into("F32", matrix.num_outputs, matrix.num_inputs, values.view(np.uint8).reshape(-1), data)
    wrong = PackedMatrix("F32", matrix.num_outputs, matrix.num_inputs, data)
    return replace(model, packed=PackedWeights({**model.packed.matrices, name: wrong}, model.packed.vectors))


@pytest.mark.parametrize(
    ("weight", "named"),
    [("blk.1.ffn_down.weight", "feed-forward part of layer 1"), ("blk.0.attn_v.weight", "attention of layer 0")],
)
def test_wrong_scales_in_one_layer_are_found_there(weight: str, named: str) -> None:
    model = stored_model("qwen2")
    names = residual_values(model.graph)
    reference = model.reference()
    for factor, expected in ((4.0, [named]), (1.0, [])):
        taps = NativeTaps(faulty(model, weight, factor).native(""), names, max_rows=70, num_tokens=70)
        found = window_divergence(taps.values, lambda batch: reference.values(batch, names), names, TOKENS, 32, 32)
        findings = layer_findings(summarize_layers(names, [found]))
        assert [text.split(" (")[0].removeprefix("the ") for text in findings] == expected
        taps.close()


def test_gradient_times_input_is_the_slope_of_the_log_probability() -> None:
    model = stored_model("qwen2")  # its head is not its table
    weights = {name: tensor.double() for name, tensor in model.decoded.items()}
    prompt, answer = [5, 9, 5, 200, 17], [3, 44, 8]

    def backend(scaled: int | None = None, factor: float = 1.0) -> TorchBackend:
        table = weights["token_embd.weight"].clone()
        if scaled is not None:
            table[scaled] *= factor
        given = {**weights, "token_embd.weight": table}
        return TorchBackend(model.graph, given, num_blocks=1, max_rows=32, dtype=torch.float64)

    batch, targets = answer_batch(prompt, answer, 32)
    scores = backend().gradient_times_input(batch, targets)
    assert scores.shape == (len(prompt) + len(answer) - 1,)

    def logprob(token: int, factor: float) -> float:
        with torch.no_grad():
            logprobs = backend(token, factor).logits(batch).log_softmax(-1)
        return float(logprobs[torch.arange(3), torch.from_numpy(targets.astype(np.int64))].sum())

    for token in {5, 9, 200, 17}:
        slope = (logprob(token, 1 + 1e-5) - logprob(token, 1 - 1e-5)) / 2e-5
        places = [place for place, other in enumerate([*prompt, *answer][:-1]) if other == token]
        assert scores[places].sum() == pytest.approx(slope, rel=1e-4, abs=1e-7)
    assert scores[0] != pytest.approx(scores[2], rel=1e-3)  # the same token at two places
