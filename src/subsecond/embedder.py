"""Embedding models for Python programs: load one, then turn texts into vectors; wires layers, computes nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from subsecond.core.arguments import check_load_arguments, check_texts
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.engine.embedding import embed_sequences
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.store import resolve

if TYPE_CHECKING:
    from subsecond.backends.batch import Float32
    from subsecond.backends.protocol import Backend

MAX_STEP_ROWS = 2048


def load_embedder(model: str | Path, *, isa: str | None = None, num_threads: int | None = None) -> Embedder:
    """Load an embedding model: BERT and its like, or a language model that was trained to embed.

    model        path of a model file or folder, or the name of a model on disk
    isa          instruction set to hold the kernels to; None takes the best this processor has
    num_threads  None takes one for each physical core

    Raises:
        InputError: no such model, or a value that is not allowed.
        FormatError, UnsupportedError: the file is damaged, or the model gives no vectors.
    """
    check_load_arguments(model, num_threads=num_threads)
    checkpoint = open_checkpoint(resolve(os.fspath(model)))
    if checkpoint.config.pooling is None:
        raise UnsupportedError(
            f"{checkpoint.config.name} is a language model that says nothing about pooling; "
            "use subsecond.load for answers, or give an embedding model"
        )
    from subsecond.backends import native

    max_rows = max(MAX_STEP_ROWS, min(checkpoint.config.context_length, 4 * MAX_STEP_ROWS))
    backend = native.load(checkpoint, isa=isa, num_threads=num_threads, context_tokens=max_rows, max_rows=max_rows)
    return Embedder(checkpoint, backend)


class Embedder:
    """A loaded embedding model; to be closed, best by `with`. May be used from any thread, one call at a time."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend) -> None:
        self.checkpoint = checkpoint
        self.backend = backend
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.checkpoint.config.width

    def embed(self, texts: Sequence[str]) -> Float32:
        """Unit vectors float32 [texts, width]; their scalar products are cosine similarities.

        Raises:
            InputError: no list of texts, one that is longer than the model's context (nothing is cut off), or the model
                is closed.
        """
        check_texts(texts)
        return self.embed_tokens([self._encode(index, text) for index, text in enumerate(texts)])

    def embed_tokens(self, sequences: Sequence[Sequence[int]]) -> Float32:
        """As `embed`, of texts that are token ids already, those that the model has around a text included.

        Raises:
            InputError: one is empty, longer than a step or not of the vocabulary, or the model is closed.
        """
        pooling = self.checkpoint.config.pooling
        assert pooling is not None
        vocab_size = self.checkpoint.config.vocab_size
        for index, sequence in enumerate(sequences):
            if len(sequence) and not 0 <= min(sequence) <= max(sequence) < vocab_size:
                raise InputError(f"text {index} has token ids that are not from 0 to {vocab_size - 1}")
        with self._lock:
            if self._is_closed:
                raise InputError("this embedder is closed; load the model anew")
            return embed_sequences(self.backend, sequences, pooling)

    def close(self) -> None:
        """Free the memory; the model cannot be used afterwards. May be called again."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self.backend.close()

    def _encode(self, index: int, text: str) -> list[int]:
        token_ids = self.checkpoint.tokenizer.encode_text(text)
        limit = self.checkpoint.config.context_length
        if len(token_ids) > limit:
            raise InputError(f"text {index} has {len(token_ids)} tokens; this model takes at most {limit}. Split it")
        return token_ids

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
