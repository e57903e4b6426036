"""Pieces of HTML for the page; every text in them is escaped. Colours and sizes are in page.css."""

from collections.abc import Sequence
from html import escape

from vss_hf.visualize import Palette

from .answers import ClassShare, PixelAnswer
from .labelling import Progress
from .line import others


MOVES = {"left": "←", "up": "↑", "down": "↓", "right": "→"}  # of the marked pixel, for those without a mouse
HINT = (
    '<p class="vss-hint">Click a pixel of the picture: its class, how sure the model is, and what comes next. '
    '<button type="button" class="vss-move" data-choice="middle">The one in the middle</button></p>'
)


def status(text: str, kind: str = "plain") -> str:
    """A sentence on how things stand; kind: "plain" or "error"."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="vss-status vss-{kind}" role="{role}">{escape(text)}</p>'


def waiting(before: int) -> str:
    """How many others are served first."""
    return status(f"Waiting for {others(before)}: your turn comes by itself. Keep this page open.")


def progress_bar(progress: Progress) -> str:
    """Frames done, frames per second, time left."""
    total = progress.total
    known = (
        f'max="{total}" value="{progress.done}"' if total else ""
    )  # without a value it only shows that work goes on
    counted = f"{progress.done} of {total} frames" if total else f"{progress.done} frames"
    parts = [counted]
    if progress.done:
        parts.append(f"{progress.rate:.1f} frames/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    text = " · ".join(parts)
    return f'<div class="vss-status" role="status"><progress {known}></progress><span>{escape(text)}</span></div>'


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def class_list(
    shares: Sequence[ClassShare], classes: Sequence[str], palette: Palette, models: Sequence[str], only: int | None
) -> str:
    """A row for each class: colour, name, share of the pixels by each model. A row is a button that shows it alone."""
    rows = []
    for one in shares:
        cells = "".join(
            f'<span class="vss-share"><span class="vss-bar" style="width: {100 * share:.1f}%"></span>'
            f"<span>{percent(share)}</span></span>"
            for share in one.shares
        )
        pressed = "true" if one.label == only else "false"
        rows.append(
            f'<button type="button" class="vss-class" data-choice="{one.label}" aria-pressed="{pressed}">'
            f"{named(one.label, classes, palette)}{cells}</button>"
        )
    head = ""
    if len(models) > 1:
        columns = "".join(f'<span class="vss-share" title="{escape(name)}">{escape(name)}</span>' for name in models)
        head = f'<div class="vss-class vss-head"><span class="vss-name"></span>{columns}</div>'
    return f'<div class="vss-classes">{head}{"".join(rows)}</div>'


def pixel(
    answers: Sequence[PixelAnswer],
    place: tuple[int, int],
    classes: Sequence[str],
    palette: Palette,
    models: Sequence[str],
) -> str:
    """What each model says of the pixel at (x, y)."""
    cards = []
    for model, answer in zip(models, answers, strict=True):
        title = f'<div class="vss-model">{escape(model)}</div>' if len(models) > 1 else ""
        sure = "" if answer.confidence is None else f'<strong class="vss-sure">{percent(answer.confidence)}</strong>'
        others = "".join(
            f"<li>{named(label, classes, palette)}<span>{percent(share)}</span></li>"
            for label, share in answer.next_best
        )
        if answer.confidence is None:
            others = '<li class="vss-hint">The scores of this frame are not kept.</li>'
        cards.append(
            f'<div class="vss-card">{title}<div class="vss-best">{named(answer.label, classes, palette)}{sure}</div>'
            f"<ul>{others}</ul></div>"
        )
    moves = "".join(
        f'<button type="button" class="vss-move" data-choice="{move}" aria-label="{move}">{arrow}</button>'
        for move, arrow in MOVES.items()
    )
    where = f'<p class="vss-hint">Pixel {place[0]}, {place[1]} (from the left, from the top) {moves}</p>'
    return f'<div class="vss-pixel">{where}<div class="vss-cards">{"".join(cards)}</div></div>'


def named(label: int, classes: Sequence[str], palette: Palette) -> str:
    """A class as its colour and its name."""
    red, green, blue = (int(part) for part in palette[label])
    name = escape(classes[label].replace("_", " "))
    swatch = f'<span class="vss-swatch" style="background: rgb({red}, {green}, {blue})"></span>'
    return f'{swatch}<span class="vss-name" title="{name}">{name}</span>'


def percent(share: float) -> str:
    """A share with as many digits as say something."""
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "< 0.1 %"
