"""Reports hold what they were given, as text and never as markup, and ask nothing of a network."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from subsecond.measure.html_page import Page
from subsecond.measure.svg_plot import Bar, Series, bar_plot, line_plot, number_text, stacked_plot

HOSTILE = '<script>alert("x")</script>&amp;'


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: Page) -> Reader:
    reader = Reader()
    reader.feed(page.html())
    return reader


def test_every_text_is_escaped() -> None:
    page = Page(HOSTILE)
    page.heading(HOSTILE)
    page.paragraph(HOSTILE, is_warning=True)
    page.code(HOSTILE)
    page.table([[HOSTILE, "b"], ["c", HOSTILE]])
    page.tokens([(HOSTILE, 0.5, HOSTILE)])
    page.plot(line_plot([Series(HOSTILE, [(0, 1), (1, 2)]), Series("other", [(0, 0)])], HOSTILE, HOSTILE))
    page.plot(bar_plot([Bar(HOSTILE, 1.0, 0.5, 2.0, HOSTILE)], HOSTILE))
    reader = read(page)
    assert "script" not in reader.tags
    assert reader.text.count(HOSTILE) >= 10
    assert ("title", HOSTILE) in reader.attributes


def test_nothing_is_fetched() -> None:
    page = Page("a")
    page.plot(bar_plot([Bar("a", 1.0)], "ms"))
    reader = read(page)
    assert not {"link", "img", "script", "iframe"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name in {"src", "href"}]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in reader.attributes


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    page = Page("a")
    page.write(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text() == page.html()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def coordinates(svg: str, tag: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(svg).iter() if element.tag.endswith("}" + tag)]


def test_a_curve_goes_through_its_points() -> None:
    svg = line_plot([Series("a", [(0, 0), (5, 10), (10, 20)])], "x", "y")
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in coordinates(svg, "circle")]
    assert len(circles) == 3 and len(coordinates(svg, "polyline")) == 1
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x0 < x1 < x2 and y0 > y1 > y2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


def test_a_logarithmic_axis_has_equal_steps_between_doublings() -> None:
    svg = line_plot([Series("a", [(1, 1), (2, 1), (4, 1), (8, 1)])], "x", "y", is_log_x=True)
    places = [float(c.attrib["cx"]) for c in coordinates(svg, "circle")]
    steps = [after - before for before, after in pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)


def test_bars_are_as_long_as_their_values() -> None:
    svg = bar_plot([Bar("a", 2.0), Bar("b", 4.0, 3.0, 5.0), Bar("c", math.nan, note="not measured")], "ms")
    widths = [float(r.attrib["width"]) for r in coordinates(svg, "rect")]
    assert len(widths) == 2 and widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert "not measured" in svg and len(coordinates(svg, "path")) == 1


def test_the_text_behind_a_bar_has_room() -> None:
    svg = bar_plot([Bar("a", 11.1)], "tokens of answers a second")
    (text,) = [e for e in coordinates(svg, "text") if "tokens" in "".join(e.itertext())]
    assert float(text.attrib["x"]) + 5.5 * len("".join(text.itertext())) < 640


@pytest.mark.parametrize("points", [[], [(0.0, math.nan)], [(1.0, 0.0)], [(3.0, 2.0), (3.0, 2.0)], [(0.0, -1.0)]])
def test_plots_of_little_are_drawn_too(points: list[tuple[float, float]]) -> None:
    svg = line_plot([Series("a", points)], "x", "y")
    ET.fromstring(svg)
    assert "nan" not in re.sub(r"<title>.*?</title>", "", svg)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12.345, "12.3"), (0.012345, "0.0123"), (1234.5, "1,234"), (1.5e-5, "1.50e-05"), (math.inf, "inf")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number_text(value) == text


def test_parts_fill_the_width_by_their_shares() -> None:
    svg = stacked_plot([("a", 1.0), ("b", 0.0), (HOSTILE, 3.0)], "ms")
    widths = [float(rect.attrib["width"]) for rect in coordinates(svg.partition("<p")[0], "rect")]
    assert widths == pytest.approx([160, 0, 480])
    assert "b 0 ms (0.0%)" in svg and "(75.0%)" in svg and HOSTILE not in svg


def test_bars_of_one_color() -> None:
    bars = [Bar("a", 1.0), Bar("b", 2.0)]
    for is_one, count in ((True, 1), (False, 2)):
        rects = coordinates(bar_plot(bars, "", has_one_color=is_one), "rect")
        assert len({rect.attrib["fill"] for rect in rects}) == count
