"""An exported ONNX graph: checked by the onnx package, run by onnxruntime, it computes what the reference does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from subsecond.compress.export_onnx import MODEL_NAME, export_onnx
from subsecond.compress.onnx_weights import DATA_NAME
from subsecond.core.errors import InputError
from subsecond.models.checkpoint import open_checkpoint
from tests.unit.compress.test_export_gguf import ignore
from tests.unit.reference_logits import logits_of
from tests.unit.tiny_gguf import SMALL, TypeRule, all_of, mixed, tensors_of, write_gguf

TEXT = "hello the world, he said hello"


def run(folder: Path, ids: Sequence[Sequence[int]], output: str = "logits") -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # onnxruntime would round activations to eight bits too, in products with weights of four and eight
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(folder / MODEL_NAME, options, providers=["CPUExecutionProvider"])
    (found,) = session.run([output], {"input_ids": np.array(ids, np.int64)})
    return np.asarray(found)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    "rule", [all_of(name) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")] + [mixed]
)
def test_every_type_computes_what_the_reference_does(tmp_path: Path, rule: TypeRule, is_tied: bool) -> None:
    source = open_checkpoint(write_gguf(tmp_path / "a.gguf", SMALL, tensors_of(SMALL, rule, is_tied=is_tied)))
    result = export_onnx(source, tmp_path / "out", ignore)
    onnx.checker.check_model(tmp_path / "out" / MODEL_NAME, full_check=True)
    ids = source.tokenizer.encode(TEXT)
    ours, theirs = logits_of(source, ids), run(tmp_path / "out", [ids])[0]
    bound = 1e-2 if "half precision" in " ".join(result.notes) else 1e-5  # rounded to float16 where no integers fit
    assert np.abs(theirs - ours).max() < bound * np.abs(ours).max()


def test_texts_of_any_length_and_several_at_once(tmp_path: Path) -> None:
    source = open_checkpoint(write_gguf(tmp_path / "a.gguf", SMALL, tensors_of(SMALL, mixed)))
    export_onnx(source, tmp_path / "out", ignore)
    ids = source.tokenizer.encode(TEXT)
    texts = [ids, ids[::-1]]
    found = run(tmp_path / "out", texts)
    for index, text in enumerate(texts):
        assert np.abs(found[index] - logits_of(source, text)).max() < 1e-4
    assert np.abs(run(tmp_path / "out", [ids[:3]]) - found[:1, :3]).max() < 1e-4


def test_large_models_have_their_weights_beside_the_graph(tmp_path: Path) -> None:
    source = open_checkpoint(write_gguf(tmp_path / "a.gguf", SMALL, tensors_of(SMALL, mixed)))
    export_onnx(source, tmp_path / "inside", ignore)
    result = export_onnx(source, tmp_path / "beside", ignore, max_inner_bytes=1000)
    assert not (tmp_path / "inside" / DATA_NAME).exists()
    graph, data = ((tmp_path / "beside" / name).stat().st_size for name in (MODEL_NAME, DATA_NAME))
    assert graph < data < result.num_bytes
    ids = [source.tokenizer.encode(TEXT)]
    assert np.array_equal(run(tmp_path / "inside", ids), run(tmp_path / "beside", ids))


def test_quantized_weights_stay_small(tmp_path: Path) -> None:
    config = replace(SMALL, ff_width=960)
    sizes = {}
    for name in ("Q4_0", "Q8_0", "F16", "F32"):
        source = open_checkpoint(write_gguf(tmp_path / f"{name}.gguf", config, tensors_of(config, all_of(name))))
        export_onnx(source, tmp_path / name, ignore)
        sizes[name] = (tmp_path / name / MODEL_NAME).stat().st_size
    assert sizes["Q4_0"] < 0.7 * sizes["Q8_0"] < 0.5 * sizes["F16"] < 0.3 * sizes["F32"]


def test_what_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    source = open_checkpoint(write_gguf(tmp_path / "a.gguf", SMALL, tensors_of(SMALL, mixed)))

    def interrupt(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_onnx(source, tmp_path / "out", interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    export_onnx(source, tmp_path / "out", ignore)
    with pytest.raises(InputError, match="out is there already"):
        export_onnx(source, tmp_path / "out", ignore)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
