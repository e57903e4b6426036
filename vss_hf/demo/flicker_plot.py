"""The flicker of each model over the frames, as HTML: lines that differ in their dashes, too, and in numbers."""

import math
from collections.abc import Sequence
from html import escape

from .snippets import percent


WIDTH, HEIGHT = 1000, 100  # of the drawing's own units; the page stretches it
CHANGED = "changed pixels (%)"
Line = Sequence[tuple[int, float]]


def flicker_plot(models: Sequence[str], lines: Sequence[Line]) -> str:
    """A drawing that fills its place, and what it shows in words.

    Args:
        models: what they are called.
        lines: of each model, (frame, share of changed pixels 0..1); see `answers.flicker`.
    """
    points = [point for line in lines for point in line]
    if not points:
        return '<p class="vss-hint">No frame has one of its size before it.</p>'
    first, last = min(number for number, _ in points), max(number for number, _ in points)
    top = round_up(100 * max(share for _, share in points))
    drawn = "".join(polyline(line, first, last, top, model) for model, line in enumerate(lines))
    grid = "".join(f'<line x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (0, HEIGHT / 2, HEIGHT))
    scale = "".join(f"<span>{value:g} %</span>" for value in (top, top / 2, 0))
    words = "".join(legend(name, line, model) for model, (name, line) in enumerate(zip(models, lines, strict=True)))
    return (
        f'<div class="vss-plot"><div class="vss-scale" aria-hidden="true">{scale}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{CHANGED} by frame">'
        f"<g>{grid}</g>{drawn}</svg>"
        f'<div class="vss-frames" aria-hidden="true"><span>frame {first}</span><span>frame {last}</span></div></div>'
        f'<ul class="vss-legend">{words}</ul>'
    )


def polyline(line: Line, first: int, last: int, top: float, model: int) -> str:
    """A model's line; frames without a value leave no gap."""
    wide = max(last - first, 1)
    places = [(WIDTH * (number - first) / wide, HEIGHT * (1 - 100 * share / top)) for number, share in line]
    if len(places) == 1:
        places.append((WIDTH, places[0][1]))
    return f'<polyline class="vss-line{model}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'


def legend(name: str, line: Line, model: int) -> str:
    """How a model's line looks, and what it says."""
    stroke = f'<line class="vss-line{model}" x1="0" x2="32" y1="4" y2="4"/>'
    sample = f'<svg viewBox="0 0 32 8" aria-hidden="true">{stroke}</svg>'
    number, most = max(line, key=lambda point: point[1])
    mean = sum(share for _, share in line) / len(line)
    said = f"{name}: {percent(mean)} on average, at most {percent(most)} (frame {number})"
    return f"<li>{sample}<span>{escape(said)}</span></li>"


def round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..., and of 0.1, 0.2, ... below."""
    if value <= 0.1:
        return 0.1
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))
