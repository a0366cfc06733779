"""The ratios as one picture: how far each figure is from its bar. SVG of our own: some rectangles need no library."""

from collections.abc import Sequence
from html import escape

from bench.report import Line

WIDTH, ROW, TOP = 900, 26, 44
LEFT, RIGHT = 400, 110  # of the bars: room for the names and for the numbers
MAX_BARS = 3.0  # times the bar; longer bars are cut

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.reached { fill: #2da44e } .missed { fill: #cf222e } .track { fill: #8c959f; fill-opacity: .18 }
.bar { stroke: #24292f; stroke-width: 2 } .stretch { stroke: #24292f; stroke-dasharray: 2 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .bar, .stretch { stroke: #e6edf3 } .reached { fill: #3fb950 } .missed { fill: #f85149 }
}
"""


def draw(lines: Sequence[Line], title: str) -> str:
    """An SVG. Each bar's length is the ratio over its bar (under it, where less is better): longer is better."""
    shown = [line for line in lines if line.ratio.bar is not None]
    height = TOP + ROW * len(shown) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text x="8" y="18">{escape(title)}</text>',
        f'<text x="{_x(1)}" y="{TOP - 8}" text-anchor="middle">bar</text>',
    ]
    for number, line in enumerate(shown):
        parts += _draw_row(line, TOP + ROW * number)
    bottom = height - 8
    parts += [f'<line class="bar" x1="{_x(1)}" x2="{_x(1)}" y1="{TOP}" y2="{bottom}"/>', "</svg>"]
    return "\n".join(parts) + "\n"


def _draw_row(line: Line, top: int) -> list[str]:
    ratio, middle = line.ratio, top + 17
    assert ratio.bar is not None
    score = _score(line.median, ratio.bar, ratio.upper_bound)
    kind = "missed" if line.verdict == "missed" else "reached"
    row = [
        f'<text x="8" y="{middle}">{escape(ratio.title)}</text>',
        f'<rect class="track" x="{LEFT}" y="{top + 4}" width="{WIDTH - LEFT - RIGHT}" height="{ROW - 8}"/>',
        f'<rect class="{kind}" x="{LEFT}" y="{top + 4}" width="{_x(score) - LEFT:.1f}" height="{ROW - 8}"/>',
    ]
    if ratio.stretch is not None:
        x = _x(_score(ratio.stretch, ratio.bar, ratio.upper_bound))
        row.append(f'<line class="stretch" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 2}" y2="{top + ROW - 2}"/>')
    sign = "≤" if ratio.upper_bound else "≥"
    row.append(f'<text x="{WIDTH - RIGHT + 8}" y="{middle}">{line.median:.2f} ({sign} {ratio.bar:g})</text>')
    return row


def _score(ratio: float, bar: float, most: bool) -> float:
    return (bar / ratio if most else ratio / bar) if ratio else 0.0


def _x(score: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(score, MAX_BARS) / MAX_BARS
