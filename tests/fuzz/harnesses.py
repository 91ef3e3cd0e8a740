"""The table of fuzzed readers: for each, how inputs are made and how the product's public door is opened on them.

A new reader is one entry of HARNESSES. `files` names the files that an input is written to (several: see
`file_bundle`), `mutate` makes an input from a random generator, `open` reads them as a user's program would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from subsecond.backends import native
from subsecond.backends.batch import ForwardBatch
from subsecond.backends.cost import predict
from subsecond.backends.probe_store import parse_probe
from subsecond.core.errors import FormatError
from subsecond.formats.artifact import Artifact
from subsecond.formats.gguf import GgufFile
from subsecond.formats.gguf_types import dequantize
from subsecond.formats.json_file import read_json_object
from subsecond.formats.safetensors import Safetensors
from subsecond.graph.plan import compile_plan
from subsecond.models.chat_template import ChatTemplate
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.foreign_layouts import hugging_face_models, ollama_models
from subsecond.models.prompt import encode_messages
from subsecond.models.tokenizer import Tokenizer
from tests.fuzz import (
    artifact_inputs,
    gguf_inputs,
    hugging_face_inputs,
    native_calls,
    probe_inputs,
    store_inputs,
    template_inputs,
    tokenizer_inputs,
)
from tests.unit.backends.made_up_probe import whole_plan

MESSAGES = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Héllo <|end|> the world 😀"},
    {"role": "assistant", "content": " Hello. "},
    {"role": "user", "content": "Why?\n"},
)
TEXT = "Héllo the world\n\t12345 <|start|>! 😀 \u202e ß"
MAX_DEQUANTIZED = 1 << 18


@dataclass(frozen=True, slots=True)
class Harness:
    """One reader. `share` weighs it among the others, `errors` are what else than SubsecondError may come out.

    `max_cpu_s` is processor time: on a machine with other work, elapsed time says nothing about the reader.
    `max_bytes` is what it may allocate beyond the input.
    """

    mutate: Callable[[Random], bytes]
    open: Callable[[Path], None]
    files: tuple[str, ...]
    share: int = 1
    max_cpu_s: float = 2.0
    max_bytes: int = 64 * 2**20
    errors: tuple[type[Exception], ...] = field(default=())


def _open_gguf(folder: Path) -> None:
    file = GgufFile.open(folder / "model.gguf")
    for key in file.metadata:
        assert file.metadata[key] is not None
    for name, tensor in file.tensors.items():
        raw = file.raw(name)
        assert raw.size == tensor.num_bytes
        if np.prod(tensor.shape, dtype=object) <= MAX_DEQUANTIZED:
            dequantize(tensor.type, raw, tensor.shape)


def _walk(checkpoint: Checkpoint) -> None:
    """Everything that a start reads but the weights."""
    compile_plan(checkpoint.graph())
    tokenizer = checkpoint.tokenizer
    token_ids = tokenizer.encode(TEXT, allow_special=True)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids)
    tokenizer.decode([*token_ids, *tokenizer.eos_ids], skip_special=False)
    if checkpoint.chat_template is not None:
        encode_messages(tokenizer, checkpoint.chat_template.render, MESSAGES)


def _run(checkpoint: Checkpoint) -> None:
    """Load into the native backend and compute one step of three tokens."""
    backend = native.load(checkpoint, num_threads=1, context_tokens=64, max_rows=4)
    rows = np.arange(3, dtype=np.int32)
    tokens = rows % backend.vocab_size
    tables = np.zeros((1, 1), np.int32)
    logits = backend.forward(ForwardBatch(tokens, rows, np.zeros(3, np.int32), tables, rows[2:]))
    assert logits.shape == (1, backend.vocab_size)
    backend.close()


def _open_artifact(folder: Path) -> None:
    artifact = Artifact.open(folder)
    with suppress(FormatError):  # damage that the hashes show must also be survived without a look at them
        artifact.verify()
    checkpoint = open_checkpoint(folder)
    for name in artifact.manifest.tensors:
        artifact.tensor(name)
    _walk(checkpoint)


def _open_tokenizer_file(folder: Path) -> None:
    _use(Tokenizer.load(folder / "tokenizer.json"), folder)


def _open_tokenizer_metadata(folder: Path) -> None:
    try:
        metadata = json.loads((folder / "metadata.json").read_bytes())
        json.dumps(metadata, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):
        return  # the JSON carries what GGUF can hold into the reader and is not what is tested
    if isinstance(metadata, Mapping):
        tokenizer = Tokenizer.from_gguf(metadata)
        assert not any(map(tokenizer.is_special, tokenizer.encode(TEXT))), "plain text became a special token"
        _use(tokenizer, folder)


def _use(tokenizer: Tokenizer, folder: Path) -> None:
    """Encode and decode, and read back what is written."""
    tokenizer.encode(TEXT)
    encoded = tokenizer.encode(TEXT, allow_special=True)
    tokenizer.decode([*encoded, *tokenizer.eos_ids], skip_special=False)
    tokenizer.save(folder / "saved.json")
    again = Tokenizer.load(folder / "saved.json")
    assert again.encode(TEXT, allow_special=True) == encoded, "a saved tokenizer differs from the one it was saved from"


def _render_template(folder: Path) -> None:
    source = (folder / "template.jinja").read_bytes().decode("utf-8", "surrogateescape")
    template = ChatTemplate(source, "<s>", "</s>")
    template.render(MESSAGES, tools=[{"name": "f", "parameters": {"a": [1, None]}}], enable_thinking=True)


def _open_model(folder: Path) -> None:
    _walk(open_checkpoint(folder / "model.gguf", can_use_artifact=False))


def _run_model(folder: Path) -> None:
    _run(open_checkpoint(folder / "model.gguf", can_use_artifact=False))


def _open_split(folder: Path) -> None:
    _walk(open_checkpoint(folder / gguf_inputs.SPLIT_FILES[0], can_use_artifact=False))


def _open_safetensors(folder: Path) -> None:
    opened = Safetensors.open(folder / "model.safetensors")
    for name, tensor in opened.tensors.items():
        assert opened.raw(name).size == tensor.num_bytes


def _open_hf_folder(folder: Path) -> None:
    checkpoint = open_checkpoint(folder, can_use_artifact=False)
    _walk(checkpoint)
    for name, shape in checkpoint.shapes.items():
        if np.prod(shape, dtype=object) <= MAX_DEQUANTIZED:
            assert checkpoint.weights.dequantize(name).shape == shape


def _list_stores(folder: Path) -> None:
    models = [*hugging_face_models(folder / "hub"), *ollama_models(folder / "ollama")]
    for model in models:
        assert model.path.resolve().is_relative_to(folder.resolve()), "a store leads out of its folder"
    if len(models) < 2:  # what is wrong is left out of the list with a warning; counted as refused here
        raise FormatError("a model is not listed")


def _open_probe(folder: Path) -> None:
    path = folder / "probe.json"
    probe = parse_probe(read_json_object(path), str(path))
    plan, sizes = whole_plan()
    found = predict(plan, sizes, probe, num_prompt=20, context=30, max_rows=8)
    assert 0 <= found.tpot_s < np.inf and 0 <= found.ttft_s < np.inf


def _run_artifact(folder: Path) -> None:
    _run(open_checkpoint(folder))


NATIVE_ERRORS = (ValueError, TypeError, IndexError, MemoryError, OverflowError, RuntimeError)
"""What the extension itself raises for arguments that the layers above never pass."""

HARNESSES: Mapping[str, Harness] = {
    "gguf": Harness(gguf_inputs.mutated_header, _open_gguf, ("model.gguf",), share=4),
    "gguf_model": Harness(gguf_inputs.mutated_model, _open_model, ("model.gguf",), share=3),
    "gguf_run": Harness(gguf_inputs.mutated_model, _run_model, ("model.gguf",)),
    "gguf_split": Harness(gguf_inputs.mutated_split, _open_split, gguf_inputs.SPLIT_FILES),
    "safetensors": Harness(hugging_face_inputs.mutated_safetensors, _open_safetensors, ("model.safetensors",), share=4),
    "hf_folder": Harness(hugging_face_inputs.mutated_folder, _open_hf_folder, hugging_face_inputs.FILES, share=3),
    "stores": Harness(store_inputs.mutated_stores, _list_stores, store_inputs.FILES, share=2),
    "artifact": Harness(artifact_inputs.mutated_artifact, _open_artifact, artifact_inputs.FILES, share=2),
    "artifact_run": Harness(artifact_inputs.mutated_artifact, _run_artifact, artifact_inputs.FILES),
    "probe": Harness(probe_inputs.mutated_probe, _open_probe, ("probe.json",)),
    "tokenizer_file": Harness(artifact_inputs.mutated_tokenizer, _open_tokenizer_file, ("tokenizer.json",), share=2),
    "tokenizer_metadata": Harness(
        tokenizer_inputs.mutated_metadata, _open_tokenizer_metadata, ("metadata.json",), share=2
    ),
    # A rendering stops itself after 2 s; parsing and compiling the source come on top.
    "chat_template": Harness(template_inputs.mutated_template, _render_template, ("template.jinja",), max_cpu_s=2.5),
    "executor": Harness(
        native_calls.random_calls, native_calls.run_executor, ("calls.bin",), share=2, errors=NATIVE_ERRORS
    ),
    "sampler": Harness(
        native_calls.random_calls, native_calls.run_sampler, ("calls.bin",), share=2, errors=NATIVE_ERRORS
    ),
}
