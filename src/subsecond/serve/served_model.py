"""What serving asks of a loaded model; the package's own Model answers it, and so does a fake in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from subsecond.backends.batch import Float32
from subsecond.engine.protocol import Engine
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.prompt_encoder import PromptEncoder


class ServedBackend(Protocol):
    """What is told about the machine's part in an answer."""

    @property
    def variant(self) -> str:
        """What decides the bits of an answer: weight reading, arithmetic, key/value type."""


class ServedModel(Protocol):
    """A loaded model that answers."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Configuration, tokenizer and chat template."""

    @property
    def prompts(self) -> PromptEncoder:
        """Messages and texts to token ids."""

    @property
    def engine(self) -> Engine:
        """What takes requests."""

    @property
    def backend(self) -> ServedBackend:
        """What computes."""

    @property
    def load_ms(self) -> float:
        """Milliseconds that loading took."""

    def close(self) -> None:
        """End what is live and free the memory."""


class ServedEmbedder(Protocol):
    """A loaded embedding model."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Configuration and tokenizer."""

    @property
    def backend(self) -> ServedBackend:
        """What computes."""

    @property
    def width(self) -> int:
        """Numbers in a vector."""

    def embed_tokens(self, sequences: Sequence[Sequence[int]]) -> Float32:
        """Unit vectors float32 [sequences, width] of texts as token ids."""

    def close(self) -> None:
        """Free the memory."""
