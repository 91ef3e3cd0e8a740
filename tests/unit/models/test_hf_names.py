"""Names of tensors in checkpoints: prefixes, and tensors that are not needed, are those of the family."""

from __future__ import annotations

import pytest

from subsecond.models.families.registry import find_family
from subsecond.models.hf_names import NameTable, Place


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.3.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.3.attn.masked_bias"),
        ("gpt2", "h.11.attn.bias"),
        ("bert", "bert.embeddings.position_ids"),
        ("bert", "pooler.dense.weight"),
        ("bert", "cls.predictions.bias"),
    ],
)
def test_tensors_that_are_not_needed(family: str, name: str) -> None:
    assert NameTable(find_family(family)).is_unused(name)


@pytest.mark.parametrize("name", ["pooler.dense.weight", "h.0.attn.bias", "cls.predictions.bias"])
def test_what_one_family_does_not_need_another_does_not_drop(name: str) -> None:
    assert not NameTable(find_family("llama")).is_unused(name)


@pytest.mark.parametrize("name", ["transformer.wte.weight", "wte.weight", "model.transformer.wte.weight"])
def test_prefixes_of_a_family(name: str) -> None:
    assert NameTable(find_family("gpt2")).find(name) == Place("token_embd", "weight")


@pytest.mark.parametrize(("old", "part"), [("gamma", "weight"), ("beta", "bias")])
def test_norms_of_the_first_checkpoints(old: str, part: str) -> None:
    name = f"bert.encoder.layer.3.output.LayerNorm.{old}"
    assert NameTable(find_family("bert")).find(name) == Place("blk.3.layer_output_norm", part)
    assert NameTable(find_family("llama")).find(f"model.norm.{old}") == Place("output_norm", old)
