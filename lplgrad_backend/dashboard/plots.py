"""Plots as small SVG elements. Colours are classes of page.css, so that they follow light and dark; each has a text."""

from __future__ import annotations

from collections.abc import Sequence

from lplgrad_backend.dashboard.facts import Point
from lplgrad_backend.dashboard.markup import Markup, element, join

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 34


def learning_curve(points: Sequence[Point]) -> Markup:
    """Agreement over labelled images with its 95 % band. Versions that nothing was compared with are left out."""
    shown = [point for point in points if point.agreement is not None]
    most = max(point.images for point in shown)
    least = min(point.images for point in shown)

    def x(images: int) -> float:
        return _across((images - least) / (most - least) if most > least else 0.5)

    upper = [(x(point.images), _down(point.high)) for point in shown]
    lower = [(x(point.images), _down(point.low)) for point in reversed(shown)]
    line = [(x(point.images), _down(point.agreement or 0.0)) for point in shown]
    marks = [
        join(
            element("line", x1=_n(at), x2=_n(at), y1=_n(_down(point.low)), y2=_n(_down(point.high)), class_="whisker"),
            element("circle", element("title", _said(point)), cx=_n(at), cy=_n(y), r=4, class_="dot"),
        )
        for point, (at, y) in zip(shown, line, strict=True)
    ]
    said = "; ".join(_said(point) for point in shown[-5:])
    ends = [least, most] if most > least else [most]
    return _plot(
        "Agreement with people over the number of labels",
        f"The newest versions: {said}.",
        _grid(),
        element("polygon", points=_points(upper + lower), class_="band"),
        element("polyline", points=_points(line), class_="curve"),
        *marks,
        *(_tick(x(images), str(images)) for images in ends),
        _caption("labelled images"),
    )


def score_histogram(bins: Sequence[int]) -> Markup:
    """How the scores of the pool are spread over [0, 1]."""
    highest, width = max(bins), (WIDTH - LEFT - RIGHT) / len(bins)
    bars = [
        element(
            "rect",
            element("title", f"{count} images from {at / len(bins):.2f} to {(at + 1) / len(bins):.2f}"),
            x=_n(LEFT + at * width + 1),
            y=_n(_down(count / highest)),
            width=_n(width - 2),
            height=_n(_down(0.0) - _down(count / highest)),
            class_="bar",
        )
        for at, count in enumerate(bins)
    ]
    at = max(range(len(bins)), key=bins.__getitem__)
    return _plot(
        "Histogram of scores",
        f"{sum(bins)} images; most of them, {highest}, from {at / len(bins):.2f} to {(at + 1) / len(bins):.2f}.",
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(_down(0.0)), y2=_n(_down(0.0)), class_="axis"),
        element("text", highest, x=LEFT - 8, y=_n(_down(1.0) + 4), text_anchor="end", class_="tick"),
        *bars,
        *(_tick(_across(share), f"{share:.1f}") for share in (0.0, 0.5, 1.0)),
        _caption("score: low is served first"),
    )


def share_bar(share: float) -> Markup:
    """A bar that fills `share` of its width; beside it stands the number as text."""
    inner = element("rect", x=0, y=0, width=_n(100 * share), height=6, rx=3, class_="bar")
    track = element("rect", x=0, y=0, width=100, height=6, rx=3, class_="track")
    return element(
        "svg", track, inner, viewBox="0 0 100 6", preserveAspectRatio="none", class_="share", aria_hidden="true"
    )


def _plot(title: str, description: str, *children: object) -> Markup:
    parts = join(element("title", title), element("desc", description), *children)
    label = f"{title}. {description}"
    return element("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, class_="plot")


def _grid() -> Markup:
    rows = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _down(share)
        rows.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(y), y2=_n(y), class_="rule"))
        rows.append(element("text", f"{share:.0%}", x=LEFT - 8, y=_n(y + 4), text_anchor="end", class_="tick"))
    return join(*rows)


def _tick(x: float, text: str) -> Markup:
    return element("text", text, x=_n(x), y=HEIGHT - BOTTOM + 16, text_anchor="middle", class_="tick")


def _caption(text: str) -> Markup:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return element("text", text, x=_n(middle), y=HEIGHT - 4, text_anchor="middle", class_="tick")


def _across(share: float) -> float:
    return LEFT + 8 + share * (WIDTH - LEFT - RIGHT - 16)


def _down(share: float) -> float:
    return TOP + (1.0 - share) * (HEIGHT - TOP - BOTTOM)


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in pairs)


def _said(point: Point) -> str:
    bounds = f"95 % between {point.low:.0%} and {point.high:.0%}"
    return f"{point.version}, {point.images} images: {point.agreed} of {point.compared} as people chose, {bounds}"


def _n(value: float) -> str:
    return f"{value:.1f}"
