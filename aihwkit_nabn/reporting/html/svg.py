"""Small figures as inline SVG whose colours follow the page: light, dark, or on paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

LIGHT, DARK = "#ffffff", "#15181d"
"""Backgrounds of the page."""

_LEAST_CONTRAST = 3.2  # lines and marks; WCAG asks for 3
_FIXED = {"#000000": "currentColor", "#dddddd": "var(--grid)", "#ffffff": "var(--page)"}


def draw_svg(draw: Callable[[Figure], None], width: float, height: float, *, salt: str, layout: bool = True) -> Markup:
    """Return a figure as inline SVG.

    Args:
        draw: Fills the figure.
        width: In inches of 72 units; the page scales the figure.
        height: Likewise.
        salt: Makes the ids inside different from those of the page's other figures.
        layout: Whether matplotlib arranges the axes.
    """
    style: Any = {
        "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
        "svg.hashsalt": salt,
        "text.parse_math": False,  # a label may hold a $
        "font.family": "sans-serif",
        "font.size": 9.0,
        "axes.labelsize": 9.0,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained" if layout else None)
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_inline(buffer.getvalue(), salt))


def color_variables(colors: Iterable[str], background: str) -> dict[str, str]:
    """Return CSS variables with the colours made readable on a background."""
    return {_variable(color): readable(color, background) for color in sorted({c.lower() for c in colors})}


def readable(color: str, background: str) -> str:
    """Return a colour mixed with white or black until it stands out from the background."""
    target = 255 if _luminance(_rgb(background)) < 0.2 else 0
    for step in range(21):
        mixed = [round(value + (target - value) * step / 20) for value in _rgb(color)]
        lighter, darker = sorted((_luminance(mixed), _luminance(_rgb(background))), reverse=True)
        if (lighter + 0.05) / (darker + 0.05) >= _LEAST_CONTRAST:
            break
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _inline(svg: str, salt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Several figures share one page: ids that something refers to get the figure's own prefix, others go.
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{salt}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)([^)"]+)', rf"\g<1>{salt}-\g<2>", svg)
    head, _, body = svg.partition(">")
    head = re.sub(r' (?:width|height|version|xmlns|xmlns:xlink)="[^"]*"', "", head)
    body = re.sub(r'style="[^"]*"', lambda m: re.sub(r": (#[0-9a-f]{6})\b", _themed, m[0]), body)
    body = re.sub(r"\s*\n\s*", " ", body)
    return f'{head} aria-hidden="true" focusable="false">{body}'


def _themed(match: re.Match[str]) -> str:
    return f": {_FIXED.get(match[1]) or f'var({_variable(match[1])})'}"


def _variable(color: str) -> str:
    return f"--c{color.lstrip('#').lower()}"


def _rgb(color: str) -> list[int]:
    return [int(color[start : start + 2], 16) for start in (1, 3, 5)]


def _luminance(rgb: list[int]) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
