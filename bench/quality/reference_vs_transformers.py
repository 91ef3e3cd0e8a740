"""Checks the fp32 torch reference against transformers on the dequantized weights of a GGUF file.

Run from the repository: python -m bench.quality.reference_vs_transformers MODEL.gguf TEXT --windows 3
With --stride the windows overlap and only the last tokens of each count, as `subsecond eval --stride` has it.
Ends with status 1 when perplexities differ by more than 0.05 % or logits by more than 1e-4 of their range.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from bench.quality.transformers_model import model_of
from subsecond.backends.batch import Float32, Int32
from subsecond.backends.torch import TorchBackend
from subsecond.measure.evaluation import forward_windows
from subsecond.measure.quality import compare_logits, summarize
from subsecond.measure.windows import Window, sliding_windows
from subsecond.models.checkpoint import Checkpoint, open_checkpoint

MAX_PERPLEXITY_DIFFERENCE = 0.0005
MAX_LOGIT_DIFFERENCE = 1e-4


def compare(checkpoint: Checkpoint, sliding: Sequence[Window]) -> dict[str, float]:
    """Our perplexity and transformers', and the largest difference of a logit relative to the range of a window."""
    windows = np.stack([window.token_ids for window in sliding])
    window_len = windows.shape[1]
    backend = TorchBackend(
        checkpoint.graph(), checkpoint.weights, num_blocks=-(-window_len // 32), block_tokens=32, max_rows=window_len
    )
    model = model_of(
        checkpoint.config, checkpoint.weights.dequantize, is_tied="output.weight" not in checkpoint.weights.shapes
    )
    rows, differences = [], []
    sources = zip(sliding, forward_windows(backend, windows), transformers_windows(model, windows), strict=True)
    for window, ours, theirs in sources:
        scored = slice(window.first_scored - 1, -1)
        rows.append(compare_logits(theirs[scored], ours[scored], window.token_ids[window.first_scored :]))
        logit_range = float(theirs.max()) - float(theirs.min())
        difference = max(float(np.abs(left - right).max()) for left, right in zip(ours, theirs, strict=True))
        differences.append(difference / logit_range)
        print(f"window {len(rows)}/{len(windows)}: logits differ by {differences[-1]:.2e} of range", file=sys.stderr)
    report = summarize(rows)
    return {
        "perplexity_transformers": report.perplexity_reference.value,
        "perplexity": report.perplexity.value,
        "perplexity_difference": abs(report.perplexity_ratio.value - 1),
        "logit_difference_of_range": max(differences),
        "mean_kl": report.mean_kl.value,
        "top1_agreement": report.top1_agreement.value,
    }


def transformers_windows(model: PreTrainedModel, windows: Int32) -> Iterator[Float32]:
    """Logits [window_len, vocab] of each window."""
    for window in windows:
        with torch.no_grad():
            logits: Float32 = model(torch.from_numpy(window.astype(np.int64))[None]).logits[0].numpy()
        yield logits


def main() -> int:
    """Print the figures as JSON; 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description="Check the torch reference against transformers.")
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("text", type=Path, help="text file in UTF-8")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--stride", type=int, help="tokens from window to window; without it they do not overlap")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    text = arguments.text.read_text(encoding="utf-8")
    token_ids = checkpoint.tokenizer.encode(text)
    windows = sliding_windows(token_ids, arguments.length, arguments.stride, arguments.windows)
    figures = compare(checkpoint, windows)
    shape = {"windows": len(windows), "window_tokens": arguments.length, "stride": arguments.stride}
    print(json.dumps({"model": checkpoint.config.name} | shape | figures, indent=2))
    is_same_perplexity = figures["perplexity_difference"] <= MAX_PERPLEXITY_DIFFERENCE
    is_same_logits = figures["logit_difference_of_range"] <= MAX_LOGIT_DIFFERENCE
    return 0 if is_same_perplexity and is_same_logits else 1


if __name__ == "__main__":
    sys.exit(main())
