"""Runs an evaluation through a candidate and its reference, each step kept in a journal; sums up nothing."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from subsecond.backends.protocol import Backend
from subsecond.core.errors import InputError
from subsecond.formats.fields import shorten
from subsecond.measure.eval_figures import Answer, Choices, FreeAnswer
from subsecond.measure.journal import Journal
from subsecond.measure.settings import EvaluationSettings
from subsecond.measure.task_scores import Answerer, choice_loglikelihoods, encode_pair
from subsecond.measure.tasks import Item, Task
from subsecond.measure.text_files import EvaluationText
from subsecond.measure.window_scores import WindowScores, score_window
from subsecond.measure.windows import Window, sliding_windows
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.source_file import size_and_times

MAX_DEFAULT_WINDOWS = 40  # of each text, where no number is given

# Called with the number of steps done and the number of all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TextWindow:
    """A window with the text that it is of."""

    text: EvaluationText
    window: Window


@dataclass(frozen=True, slots=True)
class Pair:
    """The models that are compared; `reference` is None where only the candidate is evaluated."""

    candidate: Backend
    reference: Backend | None


def windows_of(
    texts: Sequence[EvaluationText], checkpoint: Checkpoint, settings: EvaluationSettings, *, is_number_exact: bool
) -> list[TextWindow]:
    """The windows of all texts in their order.

    `is_number_exact`: a text that has fewer windows than asked for is an InputError, else it gives what it has. So is
    a text of less than two tokens, and a window beyond the model's context.
    """
    if texts and settings.window_tokens > checkpoint.config.context_length:
        raise InputError(
            f"windows of {settings.window_tokens} tokens do not fit into the model's context of "
            f"{checkpoint.config.context_length}; give --window-tokens of at most that"
        )
    tokenizer = checkpoint.tokenizer
    bos_id = tokenizer.bos_id if tokenizer.add_bos else None
    exact = settings.windows if is_number_exact else None
    most = settings.windows or MAX_DEFAULT_WINDOWS
    found = []
    for text in texts:
        try:
            token_ids = tokenizer.encode(text.text)
            windows = sliding_windows(token_ids, settings.window_tokens, settings.stride, exact, bos_id)
        except InputError as error:
            raise InputError(f"{text.name}: {error}") from error
        found += [TextWindow(text, window) for window in windows[:most]]
    return found


def work_inputs(
    checkpoint: Checkpoint,
    backend: Backend,
    reference: Checkpoint | None,
    windows: Sequence[TextWindow],
    tasks: Sequence[Task],
    settings: EvaluationSettings,
    context_tokens: int | None,
) -> dict[str, Any]:
    """Everything that decides the numbers, as JSON data: the inputs of the journal."""
    cut = hashlib.sha256()
    for each in windows:
        cut.update(f"{each.window.first_scored} {len(each.window.token_ids)} ".encode())
        cut.update(each.window.token_ids.tobytes())
    asked = hashlib.sha256(repr([(task.kind, task.items) for task in tasks]).encode("utf-8", "surrogatepass"))
    extension = importlib.util.find_spec("subsecond._native")
    is_built = extension is not None and extension.origin is not None
    return {
        "program": version("subsecond"),
        "extension": size_and_times([Path(str(extension.origin))]) if extension is not None and is_built else None,
        "model": checkpoint.source_sha256,
        "packed": _packed_fingerprint(checkpoint),
        "variant": backend.variant,
        "isa": getattr(backend, "isa", None),
        "context_tokens": context_tokens,
        "reference": reference.source_sha256 if reference is not None else None,
        "windows": cut.hexdigest(),
        "tasks": asked.hexdigest(),
        "answer_tokens": settings.answer_tokens,
    }


def score_windows(
    pair: Pair, windows: Sequence[TextWindow], journal: Journal, progress: Progress | None = None
) -> list[WindowScores]:
    """The scores of all windows; those that the journal has are taken from it."""
    found = []
    for index, each in enumerate(windows):
        key = f"window {index}"
        if key not in journal:
            journal.put(key, score_window(pair.candidate, pair.reference, each.window).to_json())
        found.append(WindowScores.from_json(journal[key]))
        if progress is not None:
            progress(index + 1, len(windows))
    return found


def num_windows_done(journal: Journal) -> int:
    """Windows whose scores the journal has; the rest of it are answers."""
    names = journal.keys()
    return sum(name.startswith("window") for name in names)


def answer_tasks(
    pair: Pair,
    checkpoint: Checkpoint,
    tasks: Sequence[Task],
    settings: EvaluationSettings,
    journal: Journal,
    progress: Progress | None = None,
) -> list[list[Answer]]:
    """The answers to all items of each task; those that the journal has are taken from it."""
    answerer = Answerer(checkpoint)
    num_items, num_done = sum(len(task.items) for task in tasks), 0
    found: list[list[Answer]] = []
    for number, task in enumerate(tasks):
        answers: list[Answer] = []
        for index, item in enumerate(task.items):
            key = f"task {number} item {index}"
            if key not in journal:
                journal.put(key, asdict(_answer(pair, checkpoint, answerer, item, settings.answer_tokens)))
            answers.append(_answer_from_json(journal[key]))
            num_done += 1
            if progress is not None:
                progress(num_done, num_items)
        found.append(answers)
    return found


def longest_tokens(
    windows: Sequence[TextWindow], tasks: Sequence[Task], checkpoint: Checkpoint, settings: EvaluationSettings
) -> int:
    """Tokens of the longest sequence that the evaluation will run; InputError if the model cannot read that many."""
    answerer, tokenizer = Answerer(checkpoint), checkpoint.tokenizer
    longest = max((len(each.window.token_ids) for each in windows), default=1)
    for item in (item for task in tasks for item in task.items):
        if item.choices:
            pairs = [encode_pair(tokenizer, item.prompt, choice) for choice in item.choices]
            longest = max(longest, *(len(context) + len(choice) for context, choice in pairs))
        else:
            longest = max(longest, len(answerer.prompt_ids(item.prompt)) + settings.answer_tokens)
        if longest > checkpoint.config.context_length:
            raise InputError(
                f"the question {shorten(item.prompt)} and its answer have {longest} tokens, but the model's context is "
                f"{checkpoint.config.context_length}; shorten it, or give fewer --answer-tokens"
            )
    return longest


def _answer(pair: Pair, checkpoint: Checkpoint, answerer: Answerer, item: Item, max_tokens: int) -> Answer:
    if item.choices:
        given = choice_loglikelihoods(pair.candidate, checkpoint.tokenizer, item.prompt, item.choices)
        expected = None
        if pair.reference is not None:
            expected = choice_loglikelihoods(pair.reference, checkpoint.tokenizer, item.prompt, item.choices)
        return Choices(tuple(given), None if expected is None else tuple(expected))
    given_ids = answerer.answer_ids(pair.candidate, item.prompt, max_tokens)
    if pair.reference is None:
        return FreeAnswer(answerer.text(given_ids), None)
    expected_ids = answerer.answer_ids(pair.reference, item.prompt, max_tokens, given_ids)
    return FreeAnswer(answerer.text(given_ids), answerer.text(expected_ids))


def _answer_from_json(data: Any) -> Answer:
    given, expected = data["candidate"], data["reference"]
    if isinstance(given, str):
        return FreeAnswer(given, expected)
    return Choices(tuple(given), None if expected is None else tuple(expected))


def _packed_fingerprint(checkpoint: Checkpoint) -> list[int] | None:
    """Size and times of the packed weights, None without any."""
    if checkpoint.artifact is None:
        return None
    files = sorted(path for path in checkpoint.artifact.path.rglob("*") if path.is_file())
    return list(size_and_times(files))
