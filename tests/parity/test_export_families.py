"""Every family through every writer: a small random model of transformers computes the same in each format."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from subsecond.backends.batch import Float32
from subsecond.compress.export_compressed import export_compressed
from subsecond.compress.export_gguf import export_gguf
from subsecond.compress.export_onnx import MODEL_NAME, export_onnx
from subsecond.core.errors import UnsupportedError
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.tokenizer_writer import tokenizer_files
from tests.parity.test_families_transformers import FAMILIES, NUM_TOKENS
from tests.unit.reference_logits import logits_of
from tests.unit.tiny_gguf import TOKENIZER

VOCAB_SIZE = 280  # more rows than the tokenizer has tokens, as in many published models
ALL_ROTARY = "smollm3-all-rotary"  # of which layers rotate, files in GGUF leave to the family


def ignore(_: int, __: int) -> None:
    """No progress to show."""


@dataclass(frozen=True)
class Case:
    """A saved model, a text, and the logits [NUM_TOKENS, vocabulary or width] of both."""

    opened: Checkpoint
    tokens: list[int]
    expected: Float32


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
            folder = tmp_path_factory.mktemp(name)
            family = replace(FAMILIES[name], options={**FAMILIES[name].options, "vocab_size": VOCAB_SIZE})
            family.build().save_pretrained(folder, max_shard_size=family.shard_size)
            for file, content in tokenizer_files(Tokenizer.from_gguf(TOKENIZER), None, 64).items():
                (folder / file).write_bytes(content)
            opened = open_checkpoint(folder)
            tokens = np.random.default_rng(1).integers(0, VOCAB_SIZE, NUM_TOKENS).tolist()
            cases[name] = Case(opened, tokens, logits_of(opened, tokens))
        return cases[name]

    return make


def assert_same(found: Float32, expected: Float32) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", [*FAMILIES])
def test_gguf(name: str, case_of: Callable[[str], Case], tmp_path: Path) -> None:
    case = case_of(name)
    if name == ALL_ROTARY:
        with pytest.raises(UnsupportedError, match=r"no keys for rope_free_layers = \(\)"):
            export_gguf(case.opened, tmp_path / "a.gguf", ignore)
        return
    export_gguf(case.opened, tmp_path / "a.gguf", ignore)
    found = open_checkpoint(tmp_path / "a.gguf")
    assert_same(logits_of(found, case.tokens), case.expected)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != ALL_ROTARY])
def test_a_folder_again_and_from_gguf(name: str, case_of: Callable[[str], Case], tmp_path: Path) -> None:
    case = case_of(name)
    export_compressed(case.opened, tmp_path / "again", ignore, has_int8=False)
    again = open_checkpoint(tmp_path / "again")
    assert replace(again.config, name="") == replace(case.opened.config, name="")
    assert_same(logits_of(again, case.tokens), case.expected)
    export_gguf(case.opened, tmp_path / "a.gguf", ignore)
    export_compressed(open_checkpoint(tmp_path / "a.gguf"), tmp_path / "back", ignore, has_int8=False)
    assert_same(logits_of(open_checkpoint(tmp_path / "back"), case.tokens), case.expected)
    if name != "bert":
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
        with torch.no_grad():
            assert_same(model(torch.tensor([case.tokens])).logits[0].numpy(), case.expected)


@pytest.mark.parametrize("name", [*FAMILIES])
def test_onnx(name: str, case_of: Callable[[str], Case], tmp_path: Path) -> None:
    case = case_of(name)
    if case.opened.config.num_experts:
        with pytest.raises(UnsupportedError, match="experts have no export to ONNX"):
            export_onnx(case.opened, tmp_path / "out", ignore)
        return
    export_onnx(case.opened, tmp_path / "out", ignore)
    session = onnxruntime.InferenceSession(tmp_path / "out" / MODEL_NAME, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": np.array([case.tokens], np.int64)})
    assert_same(np.asarray(found)[0], case.expected)


def test_the_text_part_of_a_model_for_images_stands_alone(case_of: Callable[[str], Case], tmp_path: Path) -> None:
    case = case_of("gemma3")
    shutil.copytree(case.opened.path, tmp_path / "whole")
    text = json.loads((tmp_path / "whole" / "config.json").read_text())
    del text["architectures"]
    whole = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "whole" / "config.json").write_text(json.dumps(whole))
    export_compressed(open_checkpoint(tmp_path / "whole"), tmp_path / "text", ignore, has_int8=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32)
    with torch.no_grad():
        assert_same(model(torch.tensor([case.tokens])).logits[0].numpy(), case.expected)
