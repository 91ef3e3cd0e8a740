"""What the server counts and times, as numbers that cost little to add to and are written out when asked for."""

from __future__ import annotations

from subsecond.engine.stream import TokenStream


class ModelMetrics:
    """Counts and times of one model's answers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def add_tokens(self, num_tokens: int, gap_s: float) -> None:
        """Note tokens of one sample that arrived together, `gap_s` after the ones before them."""

    def add_answer(self, streams: tuple[TokenStream, ...], end_reasons: tuple[str, ...]) -> None:
        """Note a request that has ended: the streams of its samples and why each ended, as its client was told."""


class Metrics:
    """All numbers of a server."""

    def __init__(self) -> None:
        self._models: dict[str, ModelMetrics] = {}

    def of(self, name: str) -> ModelMetrics:
        """Return the numbers of a model."""
        return self._models.setdefault(name, ModelMetrics(name))
