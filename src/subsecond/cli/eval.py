"""`subsecond eval`: the quality of a model through the kernels that serve it, alone or against its fp32 reference."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.cli import answering
from subsecond.cli.output import MODEL_HELP, Subparsers, add_command, print_json, table
from subsecond.core import settings
from subsecond.measure.settings import EvaluationSettings

if TYPE_CHECKING:
    from subsecond.api import Model
    from subsecond.measure.evaluation_result import EvaluationResult, Subject
    from subsecond.measure.tasks import Task
    from subsecond.measure.text_files import EvaluationText
    from subsecond.models.checkpoint import Checkpoint

SELF = "self"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        subparsers, "eval", "measure quality: perplexity, divergence from the reference, accuracy at tasks"
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--reference",
        nargs="?",
        const=SELF,
        metavar="R",
        help="compare with the fp32 graph of this model's original weights, dequantized; without a value or with "
        f"`{SELF}` those of MODEL; needs torch (the extra `compress`)",
    )
    parser.add_argument(
        "--text",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="text to read, or lines of JSON with text, domain and language; may be given several times; without "
        "--text and --task a small set that comes with the package",
    )
    parser.add_argument(
        "--task",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="questions with answers as lines of JSON (docs/evaluation.md); may be given several times",
    )
    settings.add_arguments(parser.add_argument_group("evaluation"), EvaluationSettings)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report of one file")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run of this has done")
    answering.add_engine_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the figures; findings go to standard error too."""
    from subsecond import api
    from subsecond.measure.reference_model import check_same_vocabulary, check_torch
    from subsecond.models.checkpoint import open_checkpoint
    from subsecond.models.store import resolve

    options = settings.from_arguments(EvaluationSettings, args)
    texts, tasks = _material(args)
    reference = None
    if args.reference is not None:
        check_torch()
        reference = open_checkpoint(resolve(args.model if args.reference == SELF else args.reference))
    with api.load(args.model, **answering.engine_options(args)) as model:
        if reference is not None and args.reference != SELF:
            check_same_vocabulary(model.checkpoint, reference)
        result = _evaluate(args, options, model, reference, texts, tasks)
        if args.html is not None:
            from subsecond.measure.evaluation_report import evaluation_page

            evaluation_page(result, model.checkpoint.tokenizer).write(args.html)
        if args.json:
            print_json(result.to_json(model.checkpoint.tokenizer))
        else:
            _print(result)
    return 0


def _material(args: argparse.Namespace) -> tuple[list[EvaluationText], list[Task]]:
    """The texts and tasks that were asked for, or those of the package."""
    from subsecond.measure.tasks import read_task
    from subsecond.measure.text_files import packaged_tasks, packaged_texts, read_texts

    if not args.text and not args.task:
        return packaged_texts(), [read_task(path) for path in packaged_tasks()]
    return [text for path in args.text for text in read_texts(path)], [read_task(path) for path in args.task]


def _evaluate(
    args: argparse.Namespace,
    options: EvaluationSettings,
    model: Model,
    reference: Checkpoint | None,
    texts: list[EvaluationText],
    tasks: list[Task],
) -> EvaluationResult:
    """Run what the journal does not have yet."""
    from subsecond.cli.progress import step_progress
    from subsecond.measure import evaluation_run as work
    from subsecond.measure.evaluation_result import EvaluationResult
    from subsecond.measure.journal import resumed
    from subsecond.measure.reference_model import open_reference

    checkpoint, backend = model.checkpoint, model.backend
    windows = work.windows_of(texts, checkpoint, options, is_number_exact=bool(args.text))
    inputs = work.work_inputs(checkpoint, backend, reference, windows, tasks, options, args.context_tokens)
    longest = work.longest_tokens(windows, tasks, checkpoint, options)
    with resumed("eval", inputs, is_fresh=args.fresh) as journal:
        opened = None if reference is None else open_reference(reference, args.context_tokens, longest)
        try:
            pair = work.Pair(backend, opened)
            num_windows = work.num_windows_done(journal)
            num_items = len(journal) - num_windows
            if len(journal):
                print(
                    f"going on after {len(journal)} steps of an interrupted run (--fresh forgets it)", file=sys.stderr
                )
            with step_progress("reading", "windows", num_windows) as progress:
                scores = work.score_windows(pair, windows, journal, progress)
            with step_progress("asking", "questions", num_items) as progress:
                answers = work.answer_tasks(pair, checkpoint, tasks, options, journal, progress)
        finally:
            if opened is not None:
                opened.close()
    return EvaluationResult(_subject(args, model, reference), windows, scores, tasks, answers)


def _subject(args: argparse.Namespace, model: Model, reference: Checkpoint | None) -> Subject:
    from subsecond.measure.evaluation_result import Subject
    from subsecond.measure.machine import machine_json

    reference_name = None
    if reference is not None:
        reference_name = f"{reference.config.name}, {reference.path.name}, dequantized to fp32"
    given = args.model if args.reference in (None, SELF) else args.reference
    explain = f"subsecond explain {args.model} --reference {given}"
    machine = machine_json(getattr(model.backend, "isa", None))
    return Subject(model.checkpoint.config.name, model.backend.variant, reference_name, machine, explain)


def _print(result: EvaluationResult) -> None:
    print(table([("figure", "value (95 % interval)"), *result.rows()]))
    for sentence in result.findings:
        print(f"FINDING: {sentence}", file=sys.stderr)
