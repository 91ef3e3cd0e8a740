"""How far the values after each layer are from the reference's: where in a model the damage arises; runs no search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

from subsecond.backends.batch import Float32, ForwardBatch, Int32
from subsecond.core.errors import FormatError
from subsecond.measure.evaluation import window_batch

CHUNK_ROWS = 256  # of a step, so that the values of all layers together stay small
FAULT_FACTOR = 10.0  # times what the median layer adds
FAULT_ERROR = 0.05  # a relative error below it hardly changes an answer

# Values of one step by name, float32 [rows, width] each; valid until the next step.
ValuesOf = Callable[[ForwardBatch], Mapping[str, Float32]]


@dataclass(frozen=True, slots=True)
class LayerDivergence:
    """Divergence of the hidden state after one part of a layer, means over positions.

    name             of the part: the graph's name of the value without what all have in common
    relative_error   |served - reference| / |reference| with L2 norms over channels
    cosine_distance  1 - cos(served, reference), from 0 to 2
    added_error      relative_error less that of the part before: negative where errors cancel
    """

    name: str
    relative_error: float
    cosine_distance: float
    added_error: float

    def to_json(self) -> dict[str, object]:
        """The fields by name, as JSON holds them."""
        return asdict(self)


def window_divergence(
    served: ValuesOf, reference: ValuesOf, names: Sequence[str], window: Int32, served_block: int, reference_block: int
) -> list[tuple[float, float]]:
    """(relative error, cosine distance) of each of `names`, means over the positions of `window` int32 [window_len].

    The blocks are those of a pool that nobody else uses, with that many tokens each. A value that is no number is a
    FormatError that says after which part it arose.
    """
    sums = np.zeros((len(names), 2))
    for start in range(0, len(window), CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, len(window))
        steps = (
            (source, window_batch(window, start, end, -(-len(window) // block)))
            for source, block in ((served, served_block), (reference, reference_block))
        )
        found, expected = (source(batch) for source, batch in steps)
        for index, name in enumerate(names):
            if not np.isfinite(found[name]).all():
                raise FormatError(
                    f"the values after {part_name(name)} are not all finite; the weights before it are damaged, or "
                    "wrong in this variant"
                )
            sums[index] += [each.sum() for each in divergence(found[name], expected[name])]
    return [(float(error), float(distance)) for error, distance in sums / len(window)]


def divergence(served: Float32, reference: Float32) -> tuple[np.ndarray, np.ndarray]:
    """Relative error and cosine distance of each row of values [rows, width], float64 [rows] each.

    A row of the reference that is zero has the relative error 0 where the served one is zero too, else 1.
    """
    a, b = served.astype(np.float64), reference.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    difference = np.linalg.norm(a - b, axis=1)
    is_zero = norm_b == 0
    error = np.where(is_zero, (difference > 0).astype(np.float64), difference / np.where(is_zero, 1.0, norm_b))
    product = norm_a * norm_b
    cosine = np.where(product > 0, (a * b).sum(axis=1) / np.where(product > 0, product, 1.0), (difference == 0) * 1.0)
    return error, np.clip(1.0 - cosine, 0.0, 2.0)


def summarize_layers(names: Sequence[str], windows: Sequence[Sequence[Sequence[float]]]) -> tuple[LayerDivergence, ...]:
    """One entry a name from the results of `window_divergence`; windows of one length count alike."""
    means = np.asarray(windows, dtype=np.float64).mean(axis=0)
    before, found = 0.0, []
    for name, (error, distance) in zip(names, means.tolist(), strict=True):
        found.append(LayerDivergence(part_name(name), error, distance, error - before))
        before = error
    return tuple(found)


def layer_findings(layers: Sequence[LayerDivergence]) -> list[str]:
    """A sentence for each part that adds more than FAULT_FACTOR times what the median part does, largest first."""
    return [
        f"{_in_words(layer.name)} adds a relative error of {layer.added_error:.3g}, "
        f"{layer.added_error / typical:.0f} times what the median part adds: look at its weights first"
        if typical > 0
        else f"{_in_words(layer.name)} adds a relative error of {layer.added_error:.3g}, the median part none"
        for layer, typical in _faults(layers)
    ]


def part_name(value: str) -> str:
    """What a part of the residual stream is called in reports."""
    return value.removesuffix("_residual")


def _faults(layers: Sequence[LayerDivergence]) -> Iterator[tuple[LayerDivergence, float]]:
    typical = median(abs(layer.added_error) for layer in layers) if layers else 0.0
    for layer in sorted(layers, key=lambda each: -each.added_error):
        if layer.added_error > FAULT_FACTOR * typical and layer.relative_error > FAULT_ERROR:
            yield layer, typical


def _in_words(name: str) -> str:
    _, _, rest = name.partition("blk.")
    number, _, part = rest.partition(".")
    kinds = {"attn": "the attention", "ffn": "the feed-forward part"}
    return f"{kinds[part]} of layer {number} ({name})" if part in kinds else name
