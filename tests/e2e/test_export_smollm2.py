"""SmolLM2 in every format that is exported: other programs compute what the reference does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from subsecond.backends.batch import Float32
from subsecond.cli import main as cli
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from tests.unit.reference_logits import logits_of

pytestmark = pytest.mark.real_model
TEXT = (
    "The old man looked at the sea for a long time. Then he said: « Whoever comes here in 1851 will find nothing but "
    "water, 🌊 wind and two or three birds. » Nobody answered, as nobody was there."
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(smollm2_path: Path) -> Checkpoint:
    return open_checkpoint(smollm2_path, can_use_artifact=False)


@pytest.fixture(scope="module")
def ids(source: Checkpoint) -> list[int]:
    return source.tokenizer.encode(TEXT)


@pytest.fixture(scope="module")
def expected(source: Checkpoint, ids: list[int]) -> Float32:
    return logits_of(source, ids)


@pytest.fixture(scope="module")
def folder(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "folder"
    assert cli.main(["export", str(source.path), "--to", "compressed-tensors", "--out", str(out)]) == 0
    return out


def mean_kl(found: Float32, expected: Float32) -> float:
    """KL divergence of the distributions of the next token, from the expected ones, in nats."""
    theirs, ours = (torch.log_softmax(torch.from_numpy(each).double(), -1) for each in (found, expected))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def test_transformers_loads_the_folder(folder: Path, source: Checkpoint, ids: list[int], expected: Float32) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.decode(ids) == TEXT
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert source.chat_template is not None
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == source.chat_template.render(messages, add_generation_prompt=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0].numpy()
    assert mean_kl(found, expected) < 1e-4  # minimums of Q4_1 are not integers: weights are rounded to float16


def test_gguf_from_the_folder(
    folder: Path, source: Checkpoint, ids: list[int], expected: Float32, tmp_path: Path
) -> None:
    out = tmp_path / "again.gguf"
    assert cli.main(["export", str(folder), "--to", "gguf", "--out", str(out)]) == 0
    again = open_checkpoint(out)
    assert mean_kl(logits_of(again, ids), expected) < 1e-4
    before, after = (gguf.GGUFReader(path).fields for path in (source.path, out))
    for key in ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"):
        name = f"tokenizer.ggml.{key}"
        assert after[name].contents() == before[name].contents(), name
    for key in ("context_length", "rope.freq_base", "attention.head_count_kv", "rope.dimension_count"):
        assert after[f"llama.{key}"].contents() == before[f"llama.{key}"].contents(), key


def test_gguf_from_the_file_keeps_every_byte(source: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "copy.gguf"
    assert cli.main(["export", str(source.path), "--to", "gguf", "--out", str(out)]) == 0
    before, after = (gguf.GGUFReader(path).tensors for path in (source.path, out))
    assert {each.name for each in before} == {each.name for each in after}
    written = {each.name: each for each in after}
    for each in before:
        assert written[each.name].tensor_type == each.tensor_type
        assert np.array_equal(written[each.name].data, each.data), each.name


def test_onnxruntime_computes_the_graph(source: Checkpoint, ids: list[int], expected: Float32, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    assert cli.main(["export", str(source.path), "--to", "onnx", "--out", str(out)]) == 0
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # activations in float32
    session = onnxruntime.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"input_ids": np.array([ids], np.int64)})
    assert mean_kl(np.asarray(found)[0], expected) < 1e-6
    assert np.array_equal(np.asarray(found)[0].argmax(-1), expected.argmax(-1))
