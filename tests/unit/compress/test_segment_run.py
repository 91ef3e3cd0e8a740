"""A run that was ended goes on with the segments that it had not done, and gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from subsecond.compress.segment_run import SegmentResult, run_segments
from subsecond.compress.stage import Calibration, Decision, StageJob
from subsecond.compress.walk import Visit
from subsecond.formats.gguf_types import TensorType
from subsecond.models.weights import StoredTensor
from tests.unit.compress.test_walk import tiny_walk


class Sink:
    def __init__(self) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self.config: Any = None
        self.readings: dict[str, str] = {}

    def put(self, name: str, tensor: StoredTensor) -> None:
        assert name not in self.tensors
        self.tensors[name] = StoredTensor(tensor.type, tensor.shape, np.array(tensor.raw))

    def put_tokenizer(self, tokenizer: object) -> None:
        raise AssertionError(f"{tokenizer} is put, where no tokenizer was changed")


def job_in(folder: Path) -> StageJob:
    walk = tiny_walk()
    checkpoint = cast(Any, SimpleNamespace(graph=lambda: walk.graph, weights=walk.source))
    calibration = Calibration(walk.windows, walk.windows[:1], "drawn")
    return StageJob(checkpoint, Sink(), calibration, folder, lambda *_: None)


def halve(seen: list[str]) -> Callable[[Visit], SegmentResult]:
    """Halves every matrix as float16, by what its inputs were: a change that depends on all that came before."""

    def work(visit: Visit) -> SegmentResult:
        seen.append(visit.segment.name)
        tensors = {}
        statistics = visit.statistics(has_gram=False)
        for value, names in visit.segment.linears.items():
            factor = 0.5 + 1e-3 * float(statistics[value].mean_abs.mean())
            for name in names:
                changed = (visit.weights[name] * factor).half()
                visit.weights[name] = changed.float()
                raw = changed.numpy().view(np.uint8).reshape(-1)
                tensors[name] = StoredTensor(TensorType.F16, tuple(changed.shape), raw)
        return SegmentResult(tensors, (Decision(visit.segment.name, "halved", "a test"),))

    return work


def bytes_of(job: StageJob) -> dict[str, bytes]:
    return {name: tensor.raw.tobytes() for name, tensor in cast(Sink, job.sink).tensors.items()}


@pytest.mark.parametrize("ended_after", [0, 1, 3])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, ended_after: int) -> None:
    torch.set_num_threads(1)
    whole, ended = job_in(tmp_path / "whole"), job_in(tmp_path / "ended")
    names: list[str] = []
    decisions = run_segments(whole, halve(names))
    done: list[str] = []
    work = halve(done)

    def ends(visit: Visit) -> SegmentResult:
        if visit.index == ended_after:
            raise KeyboardInterrupt
        return work(visit)

    with pytest.raises(KeyboardInterrupt):
        run_segments(ended, ends)
    assert cast(Sink, ended.sink).tensors == {}, "an ended run must put nothing"
    rest: list[str] = []
    assert run_segments(ended, halve(rest)) == decisions
    assert done + rest == names, "no segment is done twice"
    assert bytes_of(ended) == bytes_of(whole)
    assert set(bytes_of(whole)) == set(tiny_walk().graph.weights)
