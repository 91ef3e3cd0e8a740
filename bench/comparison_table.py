"""A comparison as text: a line for each row and a cell for each column, and how many times the best peer ours is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.rounds import Figure

Cells = Mapping[str, Figure]
"""Figures of one row by column; more is better in all of them."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our median by that of the best peer of the column."""

    value: float
    best_peer: str


def ratios(ours: Cells, peers: Mapping[str, Cells]) -> dict[str, Ratio]:
    """By column; columns that no peer has are left out."""
    found = {}
    for column, figure in ours.items():
        best = max(
            (name for name in peers if column in peers[name]), key=lambda n: peers[n][column].median, default=None
        )
        if best is not None:
            found[column] = Ratio(figure.median / peers[best][column].median, best)
    return found


def render(
    columns: Sequence[str],
    rows: Mapping[str, Cells],
    ratios_by_row: Mapping[str, Mapping[str, Ratio]],
    memory_bytes: Mapping[str, int],
) -> str:
    """The table, columns aligned; "-" where there is no figure."""
    lines = [["tokens/s", *columns, "peak memory"]]
    for name, cells in rows.items():
        memory = f"{memory_bytes[name] / 1e6:.0f} MB" if name in memory_bytes else "-"
        lines.append([name, *(_cell(cells.get(column)) for column in columns), memory])
    for name, by_column in ratios_by_row.items():
        lines.append([f"{name} / best peer", *(_ratio_cell(by_column.get(column)) for column in columns), ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{_number(figure.median)} ({_number(figure.lowest)}-{_number(figure.highest)})"


def _ratio_cell(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.value:.2f}x {ratio.best_peer}"


def _number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
