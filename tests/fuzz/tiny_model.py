"""A decoder of two layers as plain numbers, names and bytes: what the generators of model files put into them."""

from __future__ import annotations

import struct
from random import Random

from tests import byte_vocabulary

WIDTH, FF_WIDTH, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, NUM_LAYERS = 32, 64, 4, 2, 8, 2
TOKENIZER = byte_vocabulary.metadata()
VOCAB_SIZE = len(byte_vocabulary.token_texts(TOKENIZER))

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

# GGUF type id, elements and bytes of a block, and where in a block the fp16 scales are.
F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16, IQ4_NL = 0, 1, 2, 3, 6, 7, 8, 30, 20
BLOCKS: dict[int, tuple[int, int, tuple[int, ...]]] = {
    F32: (1, 4, ()),
    F16: (1, 2, (0,)),
    BF16: (1, 2, (0,)),
    Q4_0: (32, 18, (0,)),
    Q4_1: (32, 20, (0, 2)),
    Q5_0: (32, 22, (0,)),
    Q5_1: (32, 24, (0, 2)),
    Q8_0: (32, 34, (0,)),
    IQ4_NL: (32, 18, (0,)),
}
SUPER_BLOCKS: dict[int, int] = {10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 16: 66, 18: 98, 23: 136, 29: 56, 34: 54}
"""Bytes of a block of 256 elements by GGUF type id: K types and others, with and without a decoder."""


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a file of that family, (out, in) or (length,)."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB_SIZE, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for layer in range(NUM_LAYERS):
        blk = f"blk.{layer}"
        found[f"{blk}.attn_norm.weight"] = found[f"{blk}.ffn_norm.weight"] = (WIDTH,)
        for name, heads in (("q", NUM_HEADS), ("k", NUM_KV_HEADS), ("v", NUM_KV_HEADS)):
            found[f"{blk}.attn_{name}.weight"] = (heads * HEAD_DIM, WIDTH)
            if family == "qwen2":
                found[f"{blk}.attn_{name}.bias"] = (heads * HEAD_DIM,)
        found[f"{blk}.attn_output.weight"] = (WIDTH, NUM_HEADS * HEAD_DIM)
        found[f"{blk}.ffn_gate.weight"] = found[f"{blk}.ffn_up.weight"] = (FF_WIDTH, WIDTH)
        found[f"{blk}.ffn_down.weight"] = (WIDTH, FF_WIDTH)
    return found


def tensor_bytes(type_id: int, num_elements: int, rng: Random) -> bytes:
    """Stored blocks with random codes and scales of a sixteenth."""
    if type_id == F32:
        return struct.pack(f"<{num_elements}f", *(rng.uniform(-0.5, 0.5) for _ in range(num_elements)))
    block_elements, block_bytes, halves = BLOCKS.get(type_id) or (256, SUPER_BLOCKS[type_id], ())
    data = bytearray(rng.randbytes(num_elements // block_elements * block_bytes))
    for place in halves:
        for start in range(place, len(data), block_bytes):
            data[start : start + 2] = b"\x80\x3d" if type_id == BF16 else b"\x00\x2c"
    return bytes(data)
