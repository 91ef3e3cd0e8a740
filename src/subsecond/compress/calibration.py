"""Tokens that methods learn from: of the user's text, or written by the model itself; measures nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from subsecond.backends import native
from subsecond.backends.batch import Int32
from subsecond.compress.stage import Calibration, Progress
from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.engine.local import LocalEngine
from subsecond.engine.request import Request, SamplingParams
from subsecond.measure.text_files import read_texts
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How much text methods learn from. With `--text` it is that file's, else the model writes it itself."""

    windows: int = setting(64, "windows to learn from", minimum=1, maximum=100_000)
    window_tokens: int = setting(256, "tokens of a window", minimum=16, maximum=8192)
    held_out_windows: int = setting(8, "further windows, to judge by while deciding", minimum=1, maximum=10_000)
    seed: int = setting(0, "seed of the text that the model writes", minimum=0, maximum=2**32)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def num_all(self) -> int:
        """Windows to learn from and to judge by."""
        return self.windows + self.held_out_windows


def calibration_of_texts(paths: Sequence[Path], tokenizer: Tokenizer, settings: CalibrationSettings) -> Calibration:
    """Windows of the texts of files, spread evenly; those to judge by are spread evenly among them.

    A text that is too short for all windows is an InputError.
    """
    texts = [each.text for path in paths for each in read_texts(path)]
    token_ids = np.asarray([token for text in texts for token in tokenizer.encode(text)], dtype=np.int32)
    num_tokens = settings.window_tokens - tokenizer.add_bos
    num_possible = len(token_ids) // num_tokens
    if num_possible < settings.num_all:
        names = ", ".join(path.name for path in paths)
        raise InputError(
            f"{names} has {len(token_ids)} tokens, which are {num_possible} windows of {settings.window_tokens}; the "
            f"recipe learns from {settings.windows} and judges by {settings.held_out_windows}. Give a longer text, or "
            "set fewer windows under [calibration] in a recipe of your own"
        )
    starts = np.arange(settings.num_all) * num_possible // settings.num_all * num_tokens
    windows = np.stack([token_ids[start : start + num_tokens] for start in starts])
    if tokenizer.add_bos:
        assert tokenizer.bos_id is not None
        windows = np.insert(windows, 0, tokenizer.bos_id, axis=1).astype(np.int32)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
    source = f"{', '.join(path.name for path in paths)} (sha256 {digest})"
    return _parted(windows, settings, source)


def calibration_by_model(checkpoint: Checkpoint, settings: CalibrationSettings, progress: Progress) -> Calibration:
    """Windows that the model writes, drawing from its own distribution (Ji et al. 2024, arXiv 2410.17170).

    Each begins with the token that texts begin with, where the model has one, else with one drawn from all ordinary
    tokens. The same model, settings and kernels give the same tokens.
    """
    draw = Random(settings.seed)
    tokenizer = checkpoint.tokenizer
    ordinary = [token for token in range(tokenizer.vocab_size) if not tokenizer.is_special(token)]
    first = tokenizer.bos_id if tokenizer.add_bos else None
    length, count = settings.window_tokens, settings.num_all
    backend = native.load(checkpoint, context_tokens=min(count, 32) * (length + 64), weights="stored")
    engine = LocalEngine(backend, context_length=length, prefix_cache=False)
    try:
        streams, windows = [], []
        for index in range(count):
            begin = first if first is not None else draw.choice(ordinary)
            params = SamplingParams(temperature=1.0, max_tokens=length - 1, ignore_eos=True, seed=settings.seed + index)
            streams.append((begin, engine.submit(Request((begin,), params, f"calibration {index}"))))
        for index, (begin, stream) in enumerate(streams):
            progress("writing calibration text", index, count)
            windows.append([begin, *(event.token_id for event in stream if event.token_id is not None)])
    finally:
        engine.close()
        backend.close()
    progress("writing calibration text", count, count)
    return _parted(np.asarray(windows, dtype=np.int32), settings, f"written by the model, seed {settings.seed}")


def _parted(windows: Int32, settings: CalibrationSettings, source: str) -> Calibration:
    """The windows to judge by are taken at even distances."""
    held = np.arange(settings.held_out_windows) * settings.num_all // settings.held_out_windows
    is_held = np.zeros(len(windows), dtype=bool)
    is_held[held] = True
    return Calibration(windows[~is_held], windows[is_held], source)
