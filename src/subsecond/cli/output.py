"""How commands write: JSON, sizes, tables, download progress; what is written is the commands' own business."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subsecond.models.download import Progress

Subparsers = argparse._SubParsersAction  # argparse names no public type for it


MODEL_HELP = (
    "path of a GGUF file (of a model in several files any of them) or of a Hugging Face folder, or a name as "
    "`subsecond list` shows them, those of other programs included"
)

WEIGHTS = ("stored", "int8", "int4", "nested8", "nested4", "sparse")
KV_TYPES = ("f16", "int8")


def add_command(subparsers: Subparsers[argparse.ArgumentParser], name: str, summary: str) -> argparse.ArgumentParser:
    """Add a command with what every one has: a description, which is also its line in the overview, and --json."""
    parser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.add_argument("--json", action="store_true", help="print JSON to standard output, errors included")
    return parser


def print_json(value: Mapping[str, Any], *, is_indented: bool = False) -> None:
    """Print one object; on one line unless it is meant for reading."""
    print(json.dumps(value, ensure_ascii=False, indent=2 if is_indented else None), flush=True)


def error_json(kind: str, message: str) -> dict[str, Any]:
    """The object that --json prints for an error of any command; `kind` is its class or "Interrupted"."""
    return {"error": {"type": kind, "message": message}}


def size_text(num_bytes: int) -> str:
    """Bytes in decimal units, as disks and networks count: `98.4 MB`."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{num_bytes} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines with aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def download_progress(name: str) -> Iterator[Progress]:
    """A progress bar with speed and time left on standard error, for as long as the block runs."""
    from tqdm import tqdm

    with tqdm(desc=name, unit="B", unit_scale=True, delay=0.2) as bar:

        def show(num_bytes: int, total_bytes: int | None) -> None:
            bar.total = total_bytes
            bar.update(num_bytes - bar.n)

        yield show
