"""Pruned models are ordinary folders: our reader and transformers give the same logits from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from subsecond.backends.torch import TorchBackend
from subsecond.compress import (
    stage_prune_depth,
    stage_prune_heads,
    stage_prune_width,
    stage_sparsify,
    stage_trim_vocabulary,
)
from subsecond.compress.restricted_reference import RestrictedReference
from subsecond.compress.stage import Calibration, StageJob, StageResult
from subsecond.compress.stage_trim_vocabulary import kept_tokens
from subsecond.compress.work import renumbered
from subsecond.measure.evaluation import window_batch
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.hf_writer import CheckpointWriter
from tests.unit.reference_logits import logits_of
from tests.unit.tiny_gguf import SMALL, all_of, mixed, tensors_of, write_gguf

TEXT = "hello the world, he said; hell"
STAGES: dict[str, tuple[Any, Any]] = {
    "depth": (stage_prune_depth, stage_prune_depth.Settings(keep=0.8)),
    "heads": (stage_prune_heads, stage_prune_heads.Settings(keep=0.5)),
    "width": (stage_prune_width, stage_prune_width.Settings(keep=0.6)),
    "sparsify": (stage_sparsify, stage_sparsify.Settings(density=0.4)),
    "vocabulary": (stage_trim_vocabulary, stage_trim_vocabulary.Settings()),
}


def opened(folder: Path, type_name: str | None = None) -> Checkpoint:
    config = replace(SMALL, num_layers=5)
    rule = all_of(type_name) if type_name else mixed
    return open_checkpoint(write_gguf(folder / "small.gguf", config, tensors_of(config, rule)))


def calibration_of(source: Checkpoint) -> Calibration:
    windows = np.array([source.tokenizer.encode(TEXT)[:12], source.tokenizer.encode(TEXT * 2)[8:20]], np.int32)
    return Calibration(windows, windows[:1], "a test")


def apply(kind: str, source: Checkpoint, calibration: Calibration, folder: Path) -> tuple[Checkpoint, StageResult]:
    module, settings = STAGES[kind]
    with CheckpointWriter(folder, source) as sink:
        result = module.run(StageJob(source, sink, calibration, folder.with_suffix(".work"), lambda *_: None), settings)
    return open_checkpoint(folder), result


@pytest.mark.parametrize("kind", STAGES)
def test_other_programs_read_what_a_stage_writes(kind: str, tmp_path: Path) -> None:
    source = opened(tmp_path, "F16")
    found, _ = apply(kind, source, calibration_of(source), tmp_path / "out")
    ids = found.tokenizer.encode("hell the hello")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert expected.shape == (len(ids), found.config.vocab_size)
    np.testing.assert_allclose(logits_of(found, ids), expected, rtol=1e-3, atol=1e-3)


def test_stages_follow_each_other_on_a_model_of_several_types(tmp_path: Path) -> None:
    source = opened(tmp_path)
    calibration, current = calibration_of(source), source
    for index, kind in enumerate(("vocabulary", "depth", "heads", "width", "sparsify")):
        before, (current, _) = current, apply(kind, current, calibration, tmp_path / f"stage-{index}")
        calibration = renumbered(calibration, before, current)
    config = current.config
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.ff_width) == (4, 2, 1, 64)
    assert config.vocab_size < source.config.vocab_size
    assert current.readings == {"default": "sparse"}
    assert current.tokenizer.decode(calibration.windows[0]) == source.tokenizer.decode(
        calibration_of(source).windows[0]
    )
    assert np.isfinite(logits_of(current, current.tokenizer.encode(TEXT))).all()


def test_a_trimmed_folder_names_its_own_tokens(tmp_path: Path) -> None:
    source = opened(tmp_path, "F16")
    found, result = apply("vocabulary", source, calibration_of(source), tmp_path / "out")
    foreign = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (TEXT, "naïve 漢字 <|end|>", "word\n\tworld"):
        assert foreign.encode(text, add_special_tokens=False) == found.tokenizer.encode(text, allow_special=True)
        assert found.tokenizer.decode(found.tokenizer.encode(text)) == text
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["eos_token_id"] == found.tokenizer.eos_ids[0] < result.decisions[0].figures["tokens"]
    assert found.chat_template is not None and source.chat_template is not None
    messages = [{"role": "user", "content": "hello"}]
    assert found.chat_template.render(messages) == source.chat_template.render(messages)


def test_the_reference_of_a_trimmed_model_speaks_its_tokens(tmp_path: Path) -> None:
    source = opened(tmp_path, "F16")
    found, _ = apply("vocabulary", source, calibration_of(source), tmp_path / "out")
    kept = kept_tokens(source.tokenizer, found.tokenizer)
    whole = TorchBackend(source.graph(), source.weights, num_blocks=1, block_tokens=32, max_rows=32)
    reference = RestrictedReference(whole, kept)
    ids = np.array(found.tokenizer.encode(TEXT), np.int32)
    logits = reference.forward(window_batch(ids, 0, len(ids), 1))
    np.testing.assert_allclose(logits, logits_of(source, kept[ids].tolist())[:, kept], rtol=1e-6)
    np.testing.assert_allclose(logits, logits_of(found, ids.tolist()), rtol=1e-3, atol=1e-4)
    assert reference.vocab_size == logits.shape[1] == found.config.vocab_size
