"""The text side of the real SmolLM2 file: known ids, streams, saved tokenizer, chat prompt, and its tensors."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import numpy as np
import pytest

from subsecond.formats.gguf import GgufFile
from subsecond.formats.gguf_types import dequantize
from subsecond.models.chat_template import ChatTemplate
from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.tokenizer import Tokenizer

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def file(smollm2_path: Path) -> GgufFile:
    return GgufFile.open(smollm2_path)


@pytest.fixture(scope="module")
def tokenizer(file: GgufFile) -> Tokenizer:
    return Tokenizer.from_gguf(file.metadata)


def test_the_reader_agrees_with_the_gguf_package(file: GgufFile, smollm2_path: Path) -> None:
    theirs = gguf.GGUFReader(smollm2_path)
    assert list(file.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(map(int, tensor.shape[::-1]))
        assert (ours.type.name, ours.offset, ours.num_bytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
    for name in ("blk.0.ffn_down.weight", "blk.29.attn_q.weight", "output_norm.weight"):
        tensor = next(each for each in theirs.tensors if each.name == name)
        values = dequantize(file.tensors[name].type, file.raw(name), file.tensors[name].shape)
        reference = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(values.view(np.uint32), reference.view(np.uint32))


def test_known_ids_and_roles(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.eos_ids == (2, 0)
    assert tokenizer.add_bos is False
    assert tokenizer.encode("Hello, wörld! 12") == [19556, 28, 267, 29989, 400, 17, 216, 33, 34]
    assert tokenizer.encode("<|im_start|>", allow_special=True) == [1]
    assert tokenizer.encode("<|im_start|>") == [44, 108, 306, 79, 3738, 108, 46]


def test_rare_control_characters_have_no_token(tokenizer: Tokenizer) -> None:
    """The vocabulary was trained without them; they vanish here as they do in the model's own tokenizer."""
    assert tokenizer.unencodable_bytes[:6] == b"\x04\x06\x13\x14\x16\x1d"
    assert tokenizer.decode(tokenizer.encode("a\x04b")) == "ab"


def test_streams_of_random_ids(tokenizer: Tokenizer) -> None:
    chance = random.Random(11)
    for skip_special in (True, False):
        for _ in range(200):
            token_ids = [chance.randrange(tokenizer.vocab_size) for _ in range(chance.randint(1, 60))]
            detokenizer = StreamingDetokenizer(tokenizer, skip_special=skip_special)
            text = "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()
            assert text == tokenizer.decode(token_ids, skip_special=skip_special)


def test_a_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    ids = range(tokenizer.vocab_size)
    assert [loaded.token_bytes(each) for each in ids] == [tokenizer.token_bytes(each) for each in ids]
    text = "<|im_start|>user\nWhat is 12 * 7? naïve 日本<|im_end|>"
    for allow_special in (True, False):
        assert loaded.encode(text, allow_special=allow_special) == tokenizer.encode(text, allow_special=allow_special)
    assert loaded.eos_ids == tokenizer.eos_ids


def test_chat_prompt(file: GgufFile, tokenizer: Tokenizer) -> None:
    source = file.metadata["tokenizer.chat_template"]
    assert isinstance(source, str)
    template = ChatTemplate(source, tokenizer.bos_token, tokenizer.eos_token)
    prompt = template.render([{"role": "user", "content": "Hi"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    token_ids = tokenizer.encode(prompt, allow_special=True)
    assert [token_ids.count(special) for special in (1, 2)] == [3, 2]
    assert tokenizer.decode(token_ids, skip_special=False) == prompt
