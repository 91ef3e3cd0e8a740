"""Plots as SVG text, drawn without scripts, so that a report is one file that opens anywhere; decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8e5ea2", "#c77f1a", "#4a4e69", "#00798c", "#9c6644")
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 44
BAR_HEIGHT, BAR_GAP, LABEL_WIDTH, CHAR_WIDTH = 18, 6, 220, 6.5
NUM_TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) under a name, joined by a line where `is_line`."""

    name: str
    points: Sequence[tuple[float, float]]
    is_line: bool = True


@dataclass(frozen=True, slots=True)
class Bar:
    """A labelled value, with the ends of its interval where it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def line_plot(series: Sequence[Series], x_label: str, y_label: str, *, is_log_x: bool = False) -> str:
    """Curves over common axes that begin at zero, or at the least x where `is_log_x`, and a legend."""
    points = [point for one in series for point in one.points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if not points:
        return _svg(WIDTH, 40, [_text(WIDTH / 2, 24, "no values", "middle")], y_label)
    x_of = (lambda x: math.log2(max(x, 1e-9))) if is_log_x else float
    least_x = min(x_of(x) for x, _ in points) if is_log_x else min(0.0, *(x for x, _ in points))
    most_x, most_y = max(x_of(x) for x, _ in points), max(max(y for _, y in points), 0.0) or 1.0
    least_y = min(0.0, *(y for _, y in points))
    span_x, span_y = (most_x - least_x) or 1.0, (most_y - least_y) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        column = LEFT + (x_of(x) - least_x) / span_x * (WIDTH - LEFT - RIGHT)
        return column, HEIGHT - BOTTOM - (y - least_y) / span_y * (HEIGHT - TOP - BOTTOM)

    x_ticks = sorted({x for x, _ in points}) if is_log_x else _ticks(least_x, most_x)
    parts = [_grid(at, least_y, most_y, x_ticks), _axis_labels(x_label, y_label)]
    for index, one in enumerate(series):
        color = COLORS[index % len(COLORS)]
        places = [at(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
        if one.is_line and len(places) > 1:
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        if not one.is_line or len(places) <= 40:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>' for x, y in places]
    return _svg(WIDTH, HEIGHT, parts, f"{y_label} over {x_label}") + _legend([one.name for one in series])


def bar_plot(bars: Sequence[Bar], unit: str, *, has_one_color: bool = False) -> str:
    """Bars from zero to the right, each with its value and its interval as a whisker."""
    most = max((max(bar.value, bar.high or 0.0) for bar in bars if math.isfinite(bar.value)), default=0.0) or 1.0
    longest = max((len(_value_text(bar, unit)) for bar in bars), default=0)
    scale = max(WIDTH - LABEL_WIDTH - 12 - CHAR_WIDTH * longest, 60) / most
    parts = []
    for index, bar in enumerate(bars):
        y = index * (BAR_HEIGHT + BAR_GAP)
        middle = y + BAR_HEIGHT / 2
        parts.append(_text(LABEL_WIDTH - 8, middle + 4, _shortened(bar.label), "end"))
        if not math.isfinite(bar.value):
            parts.append(_text(LABEL_WIDTH, middle + 4, bar.note or "no value"))
            continue
        color = COLORS[0 if has_one_color else index % len(COLORS)]
        end = LABEL_WIDTH + max(bar.value, 0.0) * scale
        parts.append(
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{max(end - LABEL_WIDTH, 0.5):.1f}" height="{BAR_HEIGHT}" '
            f'fill="{color}"/>'
        )
        if bar.low is not None and bar.high is not None:
            low, high = LABEL_WIDTH + max(bar.low, 0.0) * scale, LABEL_WIDTH + max(bar.high, 0.0) * scale
            parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#222" stroke-width="1.4"/>')
            end = max(end, high)
        parts.append(_text(end + 6, middle + 4, _value_text(bar, unit)))
    return _svg(WIDTH, max(len(bars), 1) * (BAR_HEIGHT + BAR_GAP), parts, unit)


def stacked_plot(parts: Sequence[tuple[str, float]], unit: str) -> str:
    """One bar of parts (name, value from zero) side by side, and a legend with the values and their shares."""
    total = sum(value for _, value in parts) or 1.0
    shapes, x = [], 0.0
    for index, (name, value) in enumerate(parts):
        width = value / total * WIDTH
        tip = escape(f"{name}: {number_text(value)} {unit}")
        shapes.append(
            f'<rect x="{x:.2f}" y="0" width="{width:.2f}" height="{2 * BAR_HEIGHT}" '
            f'fill="{COLORS[index % len(COLORS)]}"><title>{tip}</title></rect>'
        )
        x += width
    names = [f"{name} {number_text(value)} {unit} ({value / total:.1%})" for name, value in parts]
    return _svg(WIDTH, 2 * BAR_HEIGHT, shapes, unit) + _legend(names)


def number_text(value: float) -> str:
    """Three significant digits, without an exponent where that stays short."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:,.{min(digits, 6)}f}"
    return f"{value:.2e}"


def _grid(
    at: Callable[[float, float], tuple[float, float]], least_y: float, most_y: float, x_ticks: Sequence[float]
) -> str:
    parts = []
    for y in _ticks(least_y, most_y):
        row = at(x_ticks[0], y)[1]
        parts.append(f'<path d="M{LEFT} {row:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, row + 4, number_text(y), "end"))
    for x in x_ticks:
        parts.append(_text(at(x, least_y)[0], HEIGHT - BOTTOM + 16, number_text(x), "middle"))
    return "".join(parts)


def _axis_labels(x_label: str, y_label: str) -> str:
    across = _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return across + (
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_label)}</text>'
    )


def _ticks(least: float, most: float) -> list[float]:
    """At most some round numbers from one to the other."""
    span = (most - least) or 1.0
    rough = span / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(least / step - 1e-9)
    return [index * step for index in range(first, math.floor(most / step + 1e-9) + 1)] or [least]


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = [
        f'<span><i style="background:{COLORS[index % len(COLORS)]}"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def _value_text(bar: Bar, unit: str) -> str:
    return f"{number_text(bar.value)} {unit}" + (f" {bar.note}" if bar.note else "")


def _shortened(label: str) -> str:
    return label if len(label) <= 34 else label[:33] + "\u2026"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" font-size="11">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
