"""Writes a GGUF file of random weights in the shape of a public model, for speed where no such model can be had.

Run: python -m bench.random_model llama-3.2-1b Q4_0 FILE
Speed does not depend on what the weights are; quality means nothing here. Codes are uniform, scales give weights of a
trained model's size, and the vocabulary is made of numbered tokens.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

WEIGHT_SIZE = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-like model; `embedding_type` is what llama.cpp's own quantizer gives to a tied embedding."""

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ff_width: int
    vocab_size: int
    context_length: int
    embedding_type: str

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.num_heads


SHAPES = {
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 8192, 128256, 131072, "Q6_K"),
    "qwen2.5-0.5b": Shape(896, 24, 14, 2, 4864, 151936, 32768, "Q8_0"),
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49152, 8192, "Q8_0"),
    "tinyllama-1.1b": Shape(2048, 22, 32, 4, 5632, 32000, 2048, "Q6_K"),
}

SCALE_OFFSETS = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q6_K": (208,),
}
"""Where a stored block has its fp16 scales."""
CODE_SIZE = {"Q4_0": 8, "Q4_1": 8, "Q5_0": 16, "Q5_1": 16, "Q8_0": 64, "Q4_K": 8 * 32, "Q6_K": 32 * 64}
"""A typical code, times the scale of a sub-block where there is one."""


def random_tensor(rng: np.random.Generator, type_name: str, num_rows: int, width: int) -> npt.NDArray[np.generic]:
    """Stored rows: uint8 [num_rows, bytes of a row], or float values of an unquantized type."""
    if type_name in ("F32", "F16"):
        values = rng.standard_normal((num_rows, width), np.float32) * WEIGHT_SIZE
        return values.astype(np.float32 if type_name == "F32" else np.float16)
    elements, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    blocks = rng.integers(0, 256, (num_rows * width // elements, num_bytes), np.uint8)
    scale = np.float16(WEIGHT_SIZE / CODE_SIZE[type_name])
    for offset in SCALE_OFFSETS[type_name]:
        blocks[:, offset : offset + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(num_rows, -1)


def write(shape: Shape, name: str, type_name: str, place: Path, seed: int = 0) -> None:
    """Write the file; every linear has the type, the tied embedding the shape's own (or the same, if unquantized)."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(place, "llama")
    writer.add_name(f"random {name}")
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.ff_width)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab_size)
    _add_tokenizer(writer, shape.vocab_size)

    def add(tensor: str, stored: str, num_rows: int, width: int) -> None:
        raw = random_tensor(rng, stored, num_rows, width)
        writer.add_tensor(tensor, raw, raw_dtype=gguf.GGMLQuantizationType[stored])

    def add_norm(tensor: str) -> None:
        writer.add_tensor(tensor, np.ones(shape.width, np.float32))

    kv_width = shape.num_kv_heads * shape.head_dim
    embedding_type = type_name if type_name in ("F32", "F16") else shape.embedding_type
    add("token_embd.weight", embedding_type, shape.vocab_size, shape.width)
    add_norm("output_norm.weight")
    for layer in range(shape.num_layers):
        prefix = f"blk.{layer}."
        add_norm(prefix + "attn_norm.weight")
        add_norm(prefix + "ffn_norm.weight")
        for part, num_rows, width in (
            ("attn_q", shape.width, shape.width),
            ("attn_k", kv_width, shape.width),
            ("attn_v", kv_width, shape.width),
            ("attn_output", shape.width, shape.width),
            ("ffn_gate", shape.ff_width, shape.width),
            ("ffn_up", shape.ff_width, shape.width),
            ("ffn_down", shape.width, shape.ff_width),
        ):
            add(f"{prefix}{part}.weight", type_name, num_rows, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """The 256 bytes, then numbered tokens; two control tokens at the end."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # the others are moved, as GPT-2 does
    names = [chr(code) for code in (*printable, *range(0x100, 0x200 - len(printable)))]
    names += ["nu", *(f"number{index}" for index in range(vocab_size - 259))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*names, "<start>", "<end>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * (vocab_size - 2) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["n u"])
    writer.add_bos_token_id(vocab_size - 2)
    writer.add_eos_token_id(vocab_size - 1)


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description="Write a GGUF file of random weights.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("type", choices=["F32", "F16", *SCALE_OFFSETS])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(SHAPES[options.shape], options.shape, options.type, options.file, options.seed)


if __name__ == "__main__":
    main()
