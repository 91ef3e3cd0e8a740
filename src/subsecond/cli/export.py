"""`subsecond export`: writes a model in the format of other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.cli.output import MODEL_HELP, Subparsers, add_command, print_json, size_text
from subsecond.core.errors import InputError

if TYPE_CHECKING:
    from subsecond.cli.progress import Progress
    from subsecond.compress.export import ExportResult
    from subsecond.models.checkpoint import Checkpoint

FORMATS = ("gguf", "onnx", "compressed-tensors")
_OUT_HELP = "the file to write for gguf, the folder for the other formats; it must not be there yet"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "export", "write a model in the format of other programs")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMATS,
        help="gguf: one file for llama.cpp and others; onnx: a graph for onnxruntime and compilers for other "
        "processors; compressed-tensors: a Hugging Face folder for transformers and vLLM",
    )
    parser.add_argument("--out", required=True, metavar="PATH", type=Path, help=_OUT_HELP)
    parser.add_argument(
        "--weights",
        choices=("stored", "int8"),
        default="stored",
        help="with --to compressed-tensors: int8 writes linears with 8 bits and one scale for each output, to be run "
        "with activations of 8 bits (W8A8), unrotated; stored, the default, keeps the blocks of the model",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the model and say what became of it."""
    from subsecond.cli.progress import step_progress
    from subsecond.models.checkpoint import open_checkpoint
    from subsecond.models.store import resolve

    if args.weights != "stored" and args.to != "compressed-tensors":
        raise InputError(f"--weights {args.weights} is for --to compressed-tensors; {args.to} holds weights as stored")
    source = open_checkpoint(resolve(args.model))
    with step_progress("exporting", "weights") as progress:
        result = _export(source, args, progress)
    if args.json:
        print_json(result.to_json())
    else:
        print(_result_text(result))
    return 0


def _export(source: Checkpoint, args: argparse.Namespace, progress: Progress) -> ExportResult:
    if args.to == "gguf":
        from subsecond.compress.export_gguf import export_gguf

        return export_gguf(source, args.out, progress)
    if args.to == "onnx":
        from subsecond.compress.export_onnx import export_onnx

        return export_onnx(source, args.out, progress)
    from subsecond.compress.export_compressed import export_compressed

    return export_compressed(source, args.out, progress, has_int8=args.weights == "int8")


def _result_text(result: ExportResult) -> str:
    types = ", ".join(f"{count} {name}" for name, count in sorted(result.types.items(), key=lambda item: -item[1]))
    lines = [f"{result.path}: {result.format}, {size_text(result.num_bytes)} ({types})"]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])
