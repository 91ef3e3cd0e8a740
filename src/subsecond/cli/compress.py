"""`subsecond compress`: makes a model smaller by a recipe, and says what that did to size, speed and quality."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subsecond.cli.output import MODEL_HELP, Subparsers, add_command, print_json, size_text, table
from subsecond.core.errors import InputError

if TYPE_CHECKING:
    from subsecond.compress.plan import Plan
    from subsecond.compress.work import Work

RECIPES = ("int8", "int4", "int4-fast", "mixed", "nested", "prune-width", "prune-depth", "sparse50", "sparse90")
MAX_EVAL_WINDOWS = 1000


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "compress",
        "make a model smaller by a recipe: quantize, prune, decide by layer; with a report of size, speed and quality",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--recipe",
        required=True,
        metavar="NAME_OR_FILE",
        help=f"one of {', '.join(RECIPES)}, or the path of a TOML file (docs/compress.md)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make: a Hugging Face model")
    parser.add_argument(
        "--text",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="text to learn from; may be given several times; without it the model writes some itself",
    )
    parser.add_argument(
        "--eval-windows",
        type=int,
        default=2,
        metavar="N",
        help="windows of each packaged text to judge the result by; 0 measures neither quality nor speed; default 2",
    )
    parser.add_argument("--plan", action="store_true", help="only say what it will take, and stop")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run of this has done")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan, do what an interrupted run has not done yet, and print the report."""
    from subsecond.measure.reference_model import check_torch

    if not 0 <= args.eval_windows <= MAX_EVAL_WINDOWS:
        raise InputError(f"--eval-windows {args.eval_windows} is not allowed; give 0 to {MAX_EVAL_WINDOWS}")
    check_torch()
    from subsecond.compress.recipe import find_recipe
    from subsecond.compress.work import Order, Work
    from subsecond.models.store import resolve

    recipe = find_recipe(args.recipe)
    for path in args.text:
        if not path.is_file():
            raise InputError(f"--text {path}: there is no such file")
    order = Order(resolve(args.model), recipe, tuple(args.text), args.out.expanduser().absolute(), args.eval_windows)
    work = Work(order, is_fresh=args.fresh)
    plan = work.plan()
    if args.plan:
        print_json(plan.to_json()) if args.json else print(table(_plan_rows(plan)))
        return 0
    print("\n".join(f"{name}: {value}" for name, value in _plan_rows(plan)[:5]), file=sys.stderr)
    if work.is_resumed:
        print("going on with what an interrupted run has done (--fresh forgets it)", file=sys.stderr)
    report = _work(work, plan)
    if args.json:
        print_json(report)
    else:
        from subsecond.compress.report import summary_rows

        print(table([("", "before", "after"), *map(tuple, summary_rows(report))]))
        print(f"\n{args.out} holds the model and report.html")
    return 0


def _work(work: Work, plan: Plan) -> dict[str, Any]:
    from subsecond.cli.progress import phase_progress

    with phase_progress(plan.phases) as phase:
        return work.run(plan, phase)


def _plan_rows(plan: Plan) -> list[tuple[str, str]]:
    minutes, seconds = divmod(round(plan.seconds), 60)
    return [
        ("time", f"about {minutes} min {seconds:02} s"),
        ("memory", size_text(plan.peak_bytes)),
        ("disk while it runs", size_text(plan.disk_bytes)),
        ("weights", f"{size_text(plan.model_bytes)}, about {size_text(plan.result_bytes)} afterwards"),
        ("decoding, by bytes read", f"about {plan.model_bytes / plan.result_bytes:.2f} times as fast"),
        *((f"  {name}", f"{seconds:.0f} s") for name, seconds in plan.phases.items()),
    ]
