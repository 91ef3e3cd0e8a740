"""Runs a recipe, stage after stage, in a folder of unfinished work; measures what came out and gives it its name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from subsecond.backends import native
from subsecond.compress import plan as planning
from subsecond.compress.calibration import calibration_by_model, calibration_of_texts
from subsecond.compress.plan import EVAL_WINDOW_TOKENS
from subsecond.compress.recipe import Recipe, stage_module
from subsecond.compress.restricted_reference import RestrictedReference
from subsecond.compress.speed import PROMPT_TOKENS, time_side_by_side
from subsecond.compress.stage import Calibration, Progress, StageJob, StageResult
from subsecond.compress.stage_trim_vocabulary import kept_tokens
from subsecond.formats.safetensors import Safetensors
from subsecond.formats.safetensors_writer import SafetensorsWriter
from subsecond.formats.whole_file import write_whole
from subsecond.formats.whole_folder import check_target, move_into_place, write_folder
from subsecond.measure import evaluation_run
from subsecond.measure.evaluation_result import EvaluationResult, Subject
from subsecond.measure.journal import Journal
from subsecond.measure.machine import machine_json
from subsecond.measure.process_reading import memory_bytes
from subsecond.measure.reference_model import open_reference
from subsecond.measure.settings import EvaluationSettings
from subsecond.measure.text_files import packaged_texts, read_text
from subsecond.models.checkpoint import Checkpoint, open_checkpoint

REPORT, PLAN, RECIPE = "report.json", "plan.json", "recipe.toml"


@dataclass(frozen=True, slots=True)
class Order:
    """What to make of which model, and where to put it.

    texts             files that methods learn from; none for text that the model writes itself
    num_eval_windows  of each text of the packaged set by which the result is judged; 0 for no judgement
    """

    model: Path
    recipe: Recipe
    texts: tuple[Path, ...]
    out: Path
    num_eval_windows: int


class Work:
    """The folder of unfinished work beside `out`: what a killed run did is there, and is not done again."""

    def __init__(self, order: Order, *, is_fresh: bool = False) -> None:
        check_target(order.out)
        self.order = order
        self.original = open_checkpoint(order.model)
        self.folder = order.out.parent / f".{order.out.name}.unfinished"
        self._known = self.folder / "inputs.json"
        self._text = json.dumps(self._inputs(), sort_keys=True)
        is_same = self._known.is_file() and self._known.read_text(encoding="utf-8") == self._text
        self.is_resumed = is_same and not is_fresh
        self._begun_s: dict[str, float] = {}

    def plan(self) -> planning.Plan:
        """What the work will take."""
        num_tokens = self.order.num_eval_windows * EVAL_WINDOW_TOKENS * len(packaged_texts())
        has_text = bool(self.order.texts) or not self.order.recipe.needs_calibration
        return planning.make_plan(self.original, self.order.recipe, num_tokens, has_text=has_text)

    def run(self, plan: planning.Plan, progress: Callable[[str], Progress]) -> dict[str, Any]:
        """Do what is not done yet, and return the report; `progress` gives what a phase of the plan tells steps to."""
        planning.check_resources(plan, self.order.out.parent)
        if not self.is_resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_whole(self._known, self._text.encode())
        progress = self._timed(progress)
        calibration = self._calibration(progress(planning.CALIBRATION))
        results, current = [], self.original
        for index, stage in enumerate(self.order.recipe.stages):
            phase = progress(f"{index + 1}. {stage.kind}")
            results.append(self._stage(index, current, calibration, phase))
            before, current = current, open_checkpoint(self._stage_folder(index))
            calibration = renumbered(calibration, before, current)
        final = self._stage_folder(len(self.order.recipe.stages) - 1)
        phase = progress(planning.PACKING)
        if current.artifact is None:
            native.write_artifact(current, final, lambda done, count: phase("packing", done, count))
            current = open_checkpoint(final)
        quality = self._quality(current, progress(planning.QUALITY))
        speeds = self._speeds(current, calibration, progress(planning.SPEED))
        report = self._report(plan, calibration, results, current, quality, speeds)
        self._finish(final, report, plan)
        return report

    def _timed(self, progress: Callable[[str], Progress]) -> Callable[[str], Progress]:
        """`progress`, with a note of when each phase begins."""

        def begin(name: str) -> Progress:
            self._begun_s[name] = time.perf_counter()
            return progress(name)

        return begin

    def _phase_seconds(self) -> dict[str, float]:
        ends = [*list(self._begun_s.values())[1:], time.perf_counter()]
        return {name: end - start for (name, start), end in zip(self._begun_s.items(), ends, strict=True)}

    def _inputs(self) -> dict[str, Any]:
        return {
            "program": version("subsecond"),
            "model": self.original.source_sha256,
            "recipe": self.order.recipe.to_json(),
            "texts": [_text_digest(path) for path in self.order.texts],
            "stage_texts": [
                [_text_digest(Path(text).expanduser()) for text in getattr(stage.settings, "texts", ())]
                for stage in self.order.recipe.stages
            ],
            "num_eval_windows": self.order.num_eval_windows,
        }

    def _calibration(self, progress: Progress) -> Calibration:
        place, settings = self.folder / "calibration", self.order.recipe.calibration
        if not self.order.recipe.needs_calibration:
            return Calibration(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32), "none")
        if not place.is_dir():
            if self.order.texts:
                made = calibration_of_texts(self.order.texts, self.original.tokenizer, settings)
            else:
                made = calibration_by_model(self.original, settings, progress)
            with write_folder(place) as folder, SafetensorsWriter(folder) as writer:
                for name, windows in (("windows", made.windows), ("held_out", made.held_out)):
                    writer.add(name, "I32", windows.shape, np.ascontiguousarray(windows).view(np.uint8).reshape(-1))
            write_whole(self.folder / "calibration.txt", made.source.encode())
        file = Safetensors.open_folder(place)
        windows, held_out = (
            np.array(file.raw(name).view("<i4").reshape(file.tensors[name].shape)) for name in ("windows", "held_out")
        )
        return Calibration(windows, held_out, (self.folder / "calibration.txt").read_text(encoding="utf-8"))

    def _stage(self, index: int, source: Checkpoint, calibration: Calibration, progress: Progress) -> StageResult:
        from subsecond.models.hf_writer import CheckpointWriter

        stage, notes = self.order.recipe.stages[index], self.folder / f"stage-{index}.json"
        if not self._stage_folder(index).is_dir():
            with CheckpointWriter(self._stage_folder(index), source) as sink:
                job = StageJob(source, sink, calibration, self.folder / f"steps-{index}", progress)
                result = stage_module(stage.kind).run(job, stage.settings)
                write_whole(notes, json.dumps(result.to_json(), allow_nan=False).encode())
            shutil.rmtree(self.folder / f"steps-{index}", ignore_errors=True)
        return StageResult.from_json(json.loads(notes.read_text(encoding="utf-8")))

    def _stage_folder(self, index: int) -> Path:
        return self.folder / f"stage-{index}"

    def _quality(self, result: Checkpoint, progress: Progress) -> dict[str, Any] | None:
        if not self.order.num_eval_windows:
            return None
        settings = EvaluationSettings(windows=self.order.num_eval_windows, window_tokens=EVAL_WINDOW_TOKENS)
        windows = evaluation_run.windows_of(packaged_texts(), result, settings, is_number_exact=False)
        with _opened(result, self.original) as pair:
            if result.tokenizer.vocab_size != self.original.tokenizer.vocab_size:
                assert pair.reference is not None
                kept = kept_tokens(self.original.tokenizer, result.tokenizer)
                pair = evaluation_run.Pair(pair.candidate, RestrictedReference(pair.reference, kept))
            journal = Journal(self.folder / "quality.jsonl")
            scores = evaluation_run.score_windows(
                pair, windows, journal, lambda done, count: progress("measuring quality", done, count)
            )
            subject = Subject(
                result.config.name,
                getattr(pair.candidate, "variant", ""),
                f"{self.original.config.name}, {self.original.path.name}, dequantized to fp32",
                machine_json(getattr(pair.candidate, "isa", None)),
                f"subsecond explain {self.order.out} --reference {self.order.model}",
            )
        return EvaluationResult(subject, windows, scores, [], []).to_json(result.tokenizer)

    def _speeds(self, result: Checkpoint, calibration: Calibration, progress: Progress) -> dict[str, Any] | None:
        if not self.order.num_eval_windows:
            return None
        progress("timing", 0, 1)
        prompt = calibration.windows.reshape(-1)
        if len(prompt) < PROMPT_TOKENS:
            prompt = np.resize(np.asarray(result.tokenizer.encode(packaged_texts()[0].text), np.int32), PROMPT_TOKENS)
        found = time_side_by_side({"original": self.original, "result": result}, prompt.tolist())
        progress("timing", 1, 1)
        return {name: each.to_json() for name, each in found.items()}

    def _report(
        self,
        plan: planning.Plan,
        calibration: Calibration,
        results: Sequence[StageResult],
        current: Checkpoint,
        quality: Mapping[str, Any] | None,
        speeds: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        return {
            "model": self.original.config.name,
            "source": asdict(self.original.source),
            "out": str(self.order.out),
            "machine": machine_json(native.choose_isa()),
            "recipe": {"name": self.order.recipe.name, **self.order.recipe.to_json()},
            "calibration": {"source": calibration.source, "num_windows": len(calibration.windows)},
            "plan": plan.to_json(),
            "phase_seconds": self._phase_seconds(),
            "peak_memory_bytes": memory_bytes(os.getpid())[1],
            "stages": [each.to_json() for each in results],
            "weight_bytes": {"original": weight_bytes(self.original), "result": weight_bytes(current)},
            "bits_per_weight": {"original": bits_per_weight(self.original), "result": bits_per_weight(current)},
            "speed": speeds,
            "quality": quality,
        }

    def _finish(self, final: Path, report: Mapping[str, Any], plan: planning.Plan) -> None:
        from subsecond.compress.report import report_page

        write_whole(final / REPORT, json.dumps(report, indent=1, allow_nan=False).encode())
        write_whole(final / PLAN, json.dumps(plan.to_json(), indent=1).encode())
        write_whole(final / RECIPE, self.order.recipe.text.encode())
        report_page(report).write(final / "report.html")
        move_into_place(final, self.order.out)
        shutil.rmtree(self.folder, ignore_errors=True)


def renumbered(calibration: Calibration, before: Checkpoint, after: Checkpoint) -> Calibration:
    """The same text in the tokens of a stage's result, where that has trimmed the vocabulary."""
    if before.config.vocab_size == after.config.vocab_size:
        return calibration
    kept = kept_tokens(before.tokenizer, after.tokenizer)
    windows, held_out = (
        np.searchsorted(kept, each).astype(np.int32) for each in (calibration.windows, calibration.held_out)
    )
    return Calibration(windows, held_out, calibration.source)


def _text_digest(path: Path) -> str:
    return hashlib.sha256(read_text(path).encode()).hexdigest()


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all weights as they are stored."""
    return sum(checkpoint.weights.raw(name).nbytes for name in checkpoint.graph().weights)


def bits_per_weight(checkpoint: Checkpoint) -> float:
    """Stored bits of a weight, over all matrices but tables that are only looked up."""
    graph = checkpoint.graph()
    names = [name for name, shape in graph.weights.items() if len(shape) > 1 and not name.startswith("token_embd")]
    count = sum(int(np.prod(graph.weights[name])) for name in names)
    return 8.0 * sum(checkpoint.weights.raw(name).nbytes for name in names) / count


@contextmanager
def _opened(result: Checkpoint, original: Checkpoint) -> Iterator[evaluation_run.Pair]:
    candidate = native.load(result, context_tokens=2 * EVAL_WINDOW_TOKENS)
    try:
        reference = open_reference(original, None, 2 * EVAL_WINDOW_TOKENS)
        try:
            yield evaluation_run.Pair(candidate, reference)
        finally:
            reference.close()
    finally:
        candidate.close()
