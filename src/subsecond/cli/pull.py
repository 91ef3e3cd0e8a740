"""`subsecond pull`: fetches a model of the catalogue and checks it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.cli.output import Subparsers, add_command, download_progress, print_json, size_text

if TYPE_CHECKING:
    from subsecond.models.download import Progress


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "pull", "fetch a model of the catalogue; an interrupted download goes on")
    parser.add_argument("name", metavar="NAME", help="name of the model; `subsecond list` shows what there is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch the model unless it is on disk, and pack its weights so that every later start is quick."""
    from subsecond.models import catalogue, store

    is_new = not store.model_path(args.name).is_file()
    with nullcontext() if args.json or not is_new else download_progress(args.name) as progress:
        path = catalogue.ensure(args.name, progress)
    with nullcontext() if args.json else download_progress("packing for the kernels") as progress:
        pack(path, progress)
    file_bytes = path.stat().st_size
    if args.json:
        print_json({"name": args.name, "path": str(path), "file_bytes": file_bytes, "is_new": is_new})
    else:
        print(f"{args.name}: {size_text(file_bytes)} {'fetched to' if is_new else 'already in'} {path}")
    return 0


def pack(path: Path, progress: Progress | None) -> None:
    """Write the artifact of a model file beside it, unless there is one that fits."""
    from subsecond.backends import native
    from subsecond.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    if not native.is_packed(checkpoint):
        native.write_artifact(checkpoint, path.parent, progress)
