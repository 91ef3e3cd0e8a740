"""Opens the reference that quality is measured against: the fp32 graph of a model's original weights, by torch."""

from __future__ import annotations

import importlib.util

from subsecond.backends.protocol import Backend
from subsecond.core.errors import InputError, ResourceError, UnsupportedError
from subsecond.core.hardware import probe
from subsecond.models.checkpoint import Checkpoint

BLOCK_TOKENS = 32
MAX_STEP_ROWS = 512


def check_torch() -> None:
    """UnsupportedError when torch, which computes references, is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError(
            "a reference is computed with torch, which is not installed; install it with: "
            "pip install 'subsecond[compress]', or leave --reference out"
        )


def check_same_vocabulary(candidate: Checkpoint, reference: Checkpoint) -> None:
    """InputError unless both models read and give the same tokens, without which nothing can be compared."""
    sizes = candidate.config.vocab_size, reference.config.vocab_size
    ours, theirs = candidate.tokenizer, reference.tokenizer
    difference = None
    if sizes[0] != sizes[1]:
        difference = f"vocabularies of {sizes[0]} and {sizes[1]} tokens"
    elif ours.vocab_size != theirs.vocab_size:
        difference = f"tokenizers of {ours.vocab_size} and {theirs.vocab_size} tokens"
    else:
        differing = next((i for i in range(ours.vocab_size) if ours.token_bytes(i) != theirs.token_bytes(i)), None)
        if differing is not None:
            texts = ours.token_bytes(differing), theirs.token_bytes(differing)
            difference = f"different tokens, for example token {differing}: {texts[0]!r} and {texts[1]!r}"
    if difference is not None:
        raise InputError(
            f"{candidate.path} and the reference {reference.path} have {difference}; a reference must be the same "
            "model in another format, or one with the same tokenizer"
        )


def open_reference(checkpoint: Checkpoint, context_tokens: int | None, num_tokens: int) -> Backend:
    """The fp32 reference of a checkpoint, with key/value blocks for `num_tokens` tokens.

    `context_tokens` is what the candidate was loaded with, on which the graph of some models depends. Whatever format
    the candidate serves, the original weights are dequantized.

    Raises:
        UnsupportedError: torch is not installed, or only packed weights are at hand.
        ResourceError: the weights do not fit into the memory in fp32.
    """
    check_torch()
    weights = checkpoint.weights
    weight_bytes = sum(4 * _num_elements(shape) for shape in checkpoint.shapes.values())
    available_bytes = probe().available_bytes
    if weight_bytes > available_bytes:
        raise ResourceError(
            f"the reference needs {weight_bytes / 1e9:.1f} GB of memory for its weights in fp32; "
            f"{available_bytes / 1e9:.1f} GB are available. Close other programs, or leave --reference out"
        )
    from subsecond.backends.torch import TorchBackend

    return TorchBackend(
        checkpoint.graph(context_tokens),
        weights,
        num_blocks=-(-num_tokens // BLOCK_TOKENS),
        block_tokens=BLOCK_TOKENS,
        max_rows=MAX_STEP_ROWS,
    )


def _num_elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
