"""Reports as one HTML file that needs no network and runs no script: sections of text, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from subsecond.formats.whole_file import write_whole

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:.8rem 0;font-size:.9rem}
td,th{padding:.2rem .7rem;border-bottom:1px solid #eee;text-align:right;vertical-align:top}
td:first-child,th:first-child{text-align:left}th{font-weight:600}
.wide{overflow-x:auto}svg{width:100%;max-width:44rem;height:auto;fill:#222}
.legend span{margin-right:1.2rem;font-size:.85rem}
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}
.warning{background:#fff3cd;padding:.5rem .8rem}.tokens{white-space:pre-wrap;line-height:1.9}
.tokens span{border-radius:.2em}code,pre{font-size:.85rem}pre{white-space:pre-wrap;background:#f6f6f6;padding:.6rem}
"""


class Page:
    """A document that is written part by part; every text given is escaped, plots come as SVG."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, *, is_warning: bool = False) -> None:
        """A paragraph; a warning stands out."""
        kind = ' class="warning"' if is_warning else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """Text of a fixed width, as it is."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of cells; the first row is the heading."""
        lines = []
        for index, row in enumerate(rows):
            tag = "td" if index else "th"
            lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
        self._parts.append(f'<div class="wide"><table>{"".join(lines)}</table></div>')

    def plot(self, svg: str) -> None:
        """A plot of `svg_plot`."""
        self._parts.append(svg)

    def tokens(self, tokens: Sequence[tuple[str, float, str]]) -> None:
        """Texts of tokens one after the other, each with a shade from -1 (blue) over 0 to 1 (red) and a tip."""
        spans = []
        for text, shade, tip in tokens:
            strength = min(abs(shade), 1.0)
            color = "209,73,91" if shade >= 0 else "27,108,168"
            spans.append(
                f'<span style="background:rgba({color},{strength:.2f})" title="{escape(tip)}">{escape(text)}</span>'
            )
        self._parts.append(f'<p class="tokens">{"".join(spans)}</p>')

    def html(self) -> str:
        """The whole document."""
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{escape(self._title)}</title><style>{STYLE}</style></head>\n"
            f"<body><h1>{escape(self._title)}</h1>\n" + "\n".join(self._parts) + "\n</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the document, as a whole or not at all."""
        write_whole(path, self.html().encode())
