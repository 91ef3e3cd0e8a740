"""Explains how a served model differs from its reference: the sections, each step kept in a journal; prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

from subsecond.backends.batch import Float32, ForwardBatch, Int32
from subsecond.backends.native import NativeBackend, NativeTaps, Weights
from subsecond.backends.protocol import Backend
from subsecond.core.errors import UnsupportedError
from subsecond.graph.graph import Graph
from subsecond.graph.taps import residual_values
from subsecond.measure import attribution, layers, time_budget, what_if
from subsecond.measure.agreement import answer_both, greedy_continuation
from subsecond.measure.evaluation import forward_windows
from subsecond.measure.flips import Flip, find_flips
from subsecond.measure.journal import Journal
from subsecond.models.checkpoint import Checkpoint

MAX_FLIPS = 20  # that a report shows
CONTEXT_TOKENS = 24  # that are shown before a flip

Progress = Callable[[int, int], None]
# Gives the result of that name, computed unless it is known from before.
Step = Callable[[str, Callable[[], Any]], Any]


class Reference(Backend, Protocol):
    """A backend whose values in between, and gradients, can be looked at."""

    def values(self, batch: ForwardBatch, names: Sequence[str]) -> dict[str, Float32]:
        """Run one step; float32 [rows, width] of each of `names`."""

    def gradient_times_input(self, batch: ForwardBatch, targets: Int32) -> Float32:
        """How much each token speaks for `targets`, one a selected row: float32 [rows]."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be explained.

    windows   int32 [num_windows, window_len]; prompts: (text, token ids) each, to be answered by both
    encode    gives the token ids of `prompt`, as a request would have them
    weights   as asked for, None for the default; `context_tokens` those that both were loaded for
    """

    sections: Sequence[str]
    windows: Int32
    prompts: Sequence[tuple[str, Sequence[int]]]
    prompt: str
    encode: Callable[[], Sequence[int]]
    max_tokens: int
    weights: Weights | None
    context_tokens: int


class Explainer:
    """Explains `served` by a reference, which is made when it is first needed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        served: NativeBackend,
        make_reference: Callable[[], tuple[Reference, Graph]],
        order: Order,
    ) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = checkpoint.tokenizer
        self._served = served
        self._make_reference = make_reference
        self._order = order

    def run(self, journal: Journal, progress: Progress) -> dict[str, Any]:
        """All sections that the order names as JSON data, None for the others; steps in `journal` are not repeated."""
        keys = self._keys()

        def step(key: str, compute: Callable[[], Any]) -> Any:
            if key not in journal:
                journal.put(key, compute())
            progress(sum(each in journal for each in keys), len(keys))
            return journal[key]

        report: dict[str, Any] = dict.fromkeys(
            ("layers", "flips", "num_flips", "num_scored_tokens", "answers", "attribution", "time")
        )
        report["findings"] = []
        writers = {
            "layers": self._layers,
            "flips": self._flips,
            "attribution": self._attribution,
            "time": self._time,
        }
        for section, write in writers.items():
            if section in self._order.sections:
                found = write(step)
                report["findings"] += found.pop("findings", [])
                report |= found
        return report

    def num_done(self, journal: Journal) -> int:
        """Steps that the journal has already."""
        return sum(key in journal for key in self._keys())

    def _keys(self) -> list[str]:
        windows, prompts = range(len(self._order.windows)), range(len(self._order.prompts))
        by_section = {
            "layers": [f"layers {index}" for index in windows],
            "flips": [*(f"flips {index}" for index in windows), *(f"answers {index}" for index in prompts)],
            "attribution": ["answer", "gradient", "occluded served", "occluded reference"],
            "time": ["time"],
        }
        return [key for section in self._order.sections for key in by_section[section]]

    @cached_property
    def _reference_and_graph(self) -> tuple[Reference, Graph]:
        return self._make_reference()

    @property
    def _reference(self) -> Reference:
        return self._reference_and_graph[0]

    def _layers(self, step: Step) -> dict[str, Any]:
        names = residual_values(self._checkpoint.graph(self._order.context_tokens))
        windows = self._order.windows
        taps: list[NativeTaps] = []

        def compute(index: int) -> list[tuple[float, float]]:
            reference, graph = self._reference_and_graph
            if not taps:
                expected = residual_values(graph)
                widths = [graph.values[name].width for name in expected]
                served_widths = [self._served.segment.graph.values[name].width for name in names]
                if names != expected or widths != served_widths:
                    raise UnsupportedError(
                        f"model and reference have other layers ({len(names) - 1} parts of width {served_widths[0]}, "
                        f"{len(expected) - 1} of {widths[0]}), which cannot be compared; give --reference the model "
                        "that this one was made from, or leave them out by --only flips,attribution,time"
                    )
                num_tokens = windows.shape[1]
                rows = min(layers.CHUNK_ROWS, num_tokens)
                taps.append(NativeTaps(self._served, names, max_rows=rows, num_tokens=num_tokens))
            return layers.window_divergence(
                taps[0].values,
                lambda batch: reference.values(batch, names),
                names,
                windows[index],
                self._served.block_tokens,
                reference.block_tokens,
            )

        try:
            found = [step(f"layers {index}", partial(compute, index)) for index in range(len(windows))]
        finally:
            for each in taps:
                each.close()
        summary = layers.summarize_layers(names, found)
        return {"layers": [each.to_json() for each in summary], "findings": layers.layer_findings(summary)}

    def _flips(self, step: Step) -> dict[str, Any]:
        windows, prompts = self._order.windows, self._order.prompts

        def compare(index: int) -> dict[str, Any]:
            window = windows[index : index + 1]
            expected, found = (next(forward_windows(each, window)) for each in (self._reference, self._served))
            count, flips = find_flips(expected, found, window[0])
            return {"count": count, "flips": [self._flip_json(index, window[0], flip) for flip in flips]}

        def answer(index: int) -> dict[str, Any]:
            prompt, ids = prompts[index]
            pair = answer_both(self._served, self._reference, ids, self._order.max_tokens, self._tokenizer.eos_ids)
            return {
                "prompt": prompt,
                "candidate": self._tokenizer.decode(pair.candidate_ids),
                "reference": self._tokenizer.decode(pair.reference_ids),
                "first_difference": pair.first_difference,
                "candidate_token": self._token_at(pair.candidate_ids, pair.first_difference),
                "reference_token": self._token_at(pair.reference_ids, pair.first_difference),
                "candidate_probability": pair.candidate_probability,
                "reference_probability": pair.reference_probability,
            }

        found = [step(f"flips {index}", partial(compare, index)) for index in range(len(windows))]
        answers = [step(f"answers {index}", partial(answer, index)) for index in range(len(prompts))]
        flips = sorted((flip for each in found for flip in each["flips"]), key=lambda flip: -flip["sureness"])
        return {
            "flips": flips[:MAX_FLIPS],
            "num_flips": sum(each["count"] for each in found),
            "num_scored_tokens": windows.shape[0] * (windows.shape[1] - 1),
            "answers": answers,
        }

    def _attribution(self, step: Step) -> dict[str, Any]:
        prompt_ids = list(self._order.encode())
        neutral_id = self._neutral_id()
        ids = step("answer", lambda: self._answer(prompt_ids))

        def gradient() -> list[float]:
            batch, targets = attribution.answer_batch(prompt_ids, ids, self._reference.block_tokens)
            scores: list[float] = self._reference.gradient_times_input(batch, targets)[: len(prompt_ids)].tolist()
            return scores

        scores = step("gradient", gradient)
        places = attribution.most_important(scores, attribution.NUM_OCCLUDED)

        def occlude(backend: Backend) -> list[float]:
            return attribution.occlusion(backend, prompt_ids, ids, places, neutral_id)

        served = step("occluded served", lambda: occlude(self._served))
        reference = step("occluded reference", lambda: occlude(self._reference))
        texts = [self._token_text(token_id) for token_id in prompt_ids]
        found = {
            "prompt": self._order.prompt,
            "answer": self._tokenizer.decode(ids),
            "tokens": [{"text": text, "gradient_x_input": score} for text, score in zip(texts, scores, strict=True)],
            "neutral_token": self._token_text(neutral_id),
            "occluded": [
                {"place": place, "text": texts[place], "served": a, "reference": b}
                for place, a, b in zip(places, served, reference, strict=True)
            ],
            "rank_correlation": attribution.rank_correlation(served, reference),
            "top_overlap": attribution.top_overlap(served, reference),
            "num_compared": min(attribution.NUM_COMPARED, len(places)),
        }
        return {"attribution": found}

    def _answer(self, prompt_ids: list[int]) -> list[int]:
        """The served model's most likely answer, without what ends it unless that is all."""
        ids: list[int] = greedy_continuation(self._served, prompt_ids, self._order.max_tokens).tolist()
        end = next((at for at, token_id in enumerate(ids) if token_id in self._tokenizer.eos_ids), len(ids))
        return ids[: max(end, 1)]

    def _time(self, step: Step) -> dict[str, Any]:
        order = self._order

        def compute() -> dict[str, Any]:
            budget = time_budget.measure_request(self._served, order.encode, self._tokenizer, order.max_tokens)
            probe = what_if.stored_probe(self._served.isa, self._served.config.num_threads)
            guesses = []
            if probe is not None:
                request = what_if.ServedRequest(
                    self._checkpoint,
                    self._served,
                    order.weights,
                    order.context_tokens,
                    budget.num_prompt_tokens,
                    budget.num_new_tokens,
                )
                guesses = [guess.to_json() for guess in what_if.what_if(request, probe)]
            return {
                "prompt": order.prompt,
                **budget.to_json(),
                "what_if": guesses,
                "what_if_error": what_if.HOW_TO_MEASURE if probe is None else None,
            }

        return {"time": step("time", compute)}

    def _flip_json(self, index: int, window: Int32, flip: Flip) -> dict[str, Any]:
        def tops(tokens: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
            return [{"token": self._token_text(token_id), "probability": chance} for token_id, chance in tokens]

        start = max(flip.position + 1 - CONTEXT_TOKENS, 0)
        context = window[start : flip.position + 1].tolist()
        return {
            "window": index,
            "position": flip.position,
            "context": self._tokenizer.decode(context, skip_special=False),
            "next": self._token_text(flip.next_id),
            "sureness": flip.sureness,
            "reference": tops(flip.reference),
            "candidate": tops(flip.candidate),
        }

    def _token_at(self, ids: Sequence[int], place: int | None) -> str | None:
        return None if place is None else self._token_text(ids[place])

    def _token_text(self, token_id: int) -> str:
        """Text of one token; tables of models may have more rows than there are tokens."""
        if token_id >= self._tokenizer.vocab_size:
            return f"<{token_id}>"
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def _neutral_id(self) -> int:
        """A token that says nothing: a space, or where that is no token of its own a full stop, or the first."""
        for text in (" ", "."):
            ids = self._tokenizer.encode(text, is_continuation=True)
            if len(ids) == 1:
                return ids[0]
        return 0
