"""Changes a model segment by segment, each on disk before the next, so that a killed run goes on; decides nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from subsecond.backends.batch import Float32
from subsecond.compress.stage import Decision, StageJob
from subsecond.compress.walk import Visit, Walk
from subsecond.formats.gguf_types import TensorType
from subsecond.formats.safetensors import Safetensors
from subsecond.formats.safetensors_writer import SafetensorsWriter
from subsecond.formats.whole_folder import write_folder
from subsecond.graph.graph import Graph
from subsecond.models.weights import StoredTensor, WeightSource, stored_tensor

_NOTES = "segment.json"


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """The weights of a segment that were changed, by name, and what was decided about it."""

    tensors: Mapping[str, StoredTensor]
    decisions: tuple[Decision, ...] = ()


def run_segments(
    job: StageJob,
    work: Callable[[Visit], SegmentResult],
    graph: Graph | None = None,
    weights: WeightSource | None = None,
) -> list[Decision]:
    """Let `work` change every segment in order, and put all weights of the model into the sink.

    `work` sees inputs that earlier segments, already changed, give; what it leaves in `visit.weights` is what later
    ones see. Weights that it does not name are taken as they are stored. `graph` and `weights` are the checkpoint's
    where not given.
    """
    graph = graph or job.checkpoint.graph()
    weights = weights or job.checkpoint.weights
    store = _Store(job.folder)
    walk = Walk(graph, weights, job.calibration.windows)
    num_done, states = store.resume()
    done: dict[str, None] = {}
    for visit in walk.visits(num_done, states):
        job.progress(visit.segment.name, visit.index, len(walk.segments))
        result = work(visit)
        visit.advance()
        store.save(visit.index, result, walk.states)
    job.progress("writing", len(walk.segments), len(walk.segments))
    decisions = []
    for index in range(len(walk.segments)):
        for name, tensor in store.tensors(index):
            done.setdefault(name)
            job.sink.put(name, tensor)
        decisions += store.decisions(index)
    for name in graph.weights:
        if name not in done:
            job.sink.put(name, stored_tensor(weights, name))
    return decisions


def as_stored(job: StageJob, name: str) -> StoredTensor:
    """A weight of the checkpoint as it is."""
    return stored_tensor(job.checkpoint.weights, name)


class _Store:
    """What segments gave, one folder each, and the states behind the last of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> tuple[int, Mapping[str, Float32] | None]:
        """The number of segments that are done, and the states behind them; None when nothing is."""
        num_done = 0
        while self._place(num_done).is_dir():
            num_done += 1
        if not num_done:
            return 0, None
        states = Safetensors.open_folder(self._states(num_done - 1))
        return num_done, {
            name: np.array(states.raw(name).view("<f4").reshape(tensor.shape))
            for name, tensor in states.tensors.items()
        }

    def save(self, index: int, result: SegmentResult, states: Mapping[str, Float32]) -> None:
        """Keep a segment; it counts as done when its folder has its name, which is after its states are there."""
        with write_folder(self._states(index), can_replace=True) as folder, SafetensorsWriter(folder) as writer:
            for name, value in states.items():
                writer.add(name, "F32", value.shape, np.ascontiguousarray(value).view(np.uint8))
        with write_folder(self._place(index), can_replace=True) as folder:
            with SafetensorsWriter(folder) as writer:
                for name, tensor in result.tensors.items():
                    writer.add(name, "U8", tensor.raw.shape, tensor.raw)
            notes = {
                "tensors": {name: [each.type.name, each.shape] for name, each in result.tensors.items()},
                "decisions": [each.to_json() for each in result.decisions],
            }
            (folder / _NOTES).write_text(json.dumps(notes, allow_nan=False), encoding="utf-8")
        if index:
            shutil.rmtree(self._states(index - 1), ignore_errors=True)

    def tensors(self, index: int) -> Iterator[tuple[str, StoredTensor]]:
        """The changed weights of a segment, one at a time."""
        notes, file = self._notes(index), Safetensors.open_folder(self._place(index))
        for name, (kind, shape) in notes["tensors"].items():
            yield name, StoredTensor(TensorType[kind], tuple(shape), file.raw(name))

    def decisions(self, index: int) -> list[Decision]:
        """What was decided about a segment."""
        return [Decision.from_json(each) for each in self._notes(index)["decisions"]]

    def _notes(self, index: int) -> dict[str, Any]:
        notes: dict[str, Any] = json.loads((self._place(index) / _NOTES).read_text(encoding="utf-8"))
        return notes

    def _place(self, index: int) -> Path:
        return self._folder / f"segment-{index:04}"

    def _states(self, index: int) -> Path:
        return self._folder / f"states-{index:04}"
