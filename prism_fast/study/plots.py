"""Charts as inline SVG that takes its colours from the page: sharp at every size, right in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 38
_RIDGE, _RIDGE_LEFT = 46, 112
BINS = 48

Point = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        name: the arm, which decides the colour (CSS class ``arm-NAME``).
        title: for the legend.
        points: (x, y).
        labels: written at each point, which is drawn as a dot; empty: a line alone.
    """

    name: str
    title: str
    points: Sequence[Point]
    labels: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point of a scatter chart.

    Attributes:
        name: decides the colour (CSS class ``arm-NAME``).
        title: shown beside it, or where the pointer rests on it.
        x, y: where it stands.
        main: the one that matters most.
    """

    name: str
    title: str
    x: float
    y: float
    main: bool = False


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers in [low, high], roughly ``about`` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_range: Point | None = None,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """Lines over a common x, with a legend below.

    Args:
        series: lines; points that are not finite are left out.
        x_label, y_label: with units.
        y_range: default: what the lines need.
        x_ticks: positive; x is logarithmic then. Default: round numbers, and x is linear.
    """
    kept = [[point for point in line.points if all(map(math.isfinite, point))] for line in series]
    every = [point for points in kept for point in points] or [(0.0, 0.0), (1.0, 1.0)]
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = y_range or (min(y for _, y in every), max(y for _, y in every))
    if y_range is None:
        margin = 0.05 * (y_high - y_low) or 1.0
        y_low, y_high = (0.0 if 0 <= y_low < 0.3 * y_high else y_low - margin), y_high + margin
    x_scale = (_scale if x_ticks is None else _log_scale)(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    y_scale = _scale(y_low, y_high, HEIGHT - _BOTTOM, _TOP)
    shown = ticks(x_low, x_high) if x_ticks is None else x_ticks
    parts = [_y_axis(ticks(y_low, y_high), y_scale), _x_axis(shown, x_scale, HEIGHT - _BOTTOM)]
    for line, points in zip(series, kept, strict=True):
        path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="line arm-{escape(line.name)}" points="{path}"/>')
        for (x, y), label in zip(line.points, line.labels, strict=bool(line.labels)):
            if math.isfinite(x) and math.isfinite(y):
                parts.append(_dot(line.name, x_scale(x), y_scale(y), label))
    parts.append(_axis_titles(x_label, y_label))
    return _svg(WIDTH, HEIGHT, parts, f"{y_label} against {x_label}") + legend(series)


def scatter_chart(
    marks: Sequence[Mark],
    x_label: str,
    y_label: str,
    bound: float,
    labelled: Collection[str],
    groups: Sequence[Series],
) -> str:
    """Points, with a legend below.

    Args:
        marks: the points; x from 0.
        x_label, y_label: with units.
        bound: a dashed line at this y.
        labelled: titles that are written out.
        groups: what the colours mean.
    """
    y_low, y_high = min(0.0, *(mark.y for mark in marks)), max(1.0, bound, *(mark.y for mark in marks))
    margin = 0.06 * (y_high - y_low)
    x_high = 1.05 * max(mark.x for mark in marks)
    x_scale = _scale(0.0, x_high, _LEFT, WIDTH - _RIGHT)
    y_scale = _scale(y_low - margin, y_high + margin, HEIGHT - _BOTTOM, _TOP)
    parts = [_y_axis(ticks(y_low, y_high), y_scale), _x_axis(ticks(0.0, x_high), x_scale, HEIGHT - _BOTTOM)]
    ends = f'x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y_scale(bound):.1f}" y2="{y_scale(bound):.1f}"'
    parts.append(f'<line class="bound" {ends}/>')
    written: list[Point] = []
    for mark in sorted(marks, key=lambda mark: mark.main):
        x, y = x_scale(mark.x), y_scale(mark.y)
        look = f'class="dot arm-{escape(mark.name)}{" main" * mark.main}" cx="{x:.1f}" cy="{y:.1f}" r="{4 + mark.main}"'
        parts.append(f"<circle {look}><title>{escape(mark.title)}</title></circle>")
        if mark.title in labelled:
            right = x < (_LEFT + WIDTH) / 2
            spots = [(x, y + shift) for shift in (13, -8, 26)]
            taken = [any(abs(a - x) < 120 and abs(b - y) < 11 for a, b in written) for x, y in spots]
            spot = next((spot for spot, full in zip(spots, taken, strict=True) if not full), spots[0])
            written.append(spot)
            parts.append(_text(x + (7 if right else -7), spot[1], mark.title, "start" if right else "end"))
    parts.append(_axis_titles(x_label, y_label))
    return _svg(WIDTH, HEIGHT, parts, f"{y_label} against {x_label}") + legend(groups)


def ridges(series: Sequence[tuple[str, str, Tensor]], x_label: str) -> str:
    """Histograms above each other over one axis, with a mark at each median.

    Args:
        series: (arm, title, values [N]).
        x_label: with units. The axis spans the central 98 % of all values.
    """
    every = torch.cat([values.double() for _, _, values in series])
    low, high = every.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
    if high <= low:
        low, high = low - 0.5, high + 0.5
    height = _TOP + len(series) * (_RIDGE + 6) + _BOTTOM
    base = height - _BOTTOM
    x_scale = _scale(low, high, _RIDGE_LEFT, WIDTH - _RIGHT)
    parts = [_x_axis(ticks(low, high), x_scale, base, top=_TOP)]
    counts = [torch.histc(values.double(), BINS, low, high) / max(1, len(values)) for *_, values in series]
    tallest = max(float(count.max()) for count in counts) or 1.0
    for place, ((name, title, values), count) in enumerate(zip(series, counts, strict=True)):
        bottom = _TOP + (place + 1) * (_RIDGE + 6)
        parts.append(_ridge(name, title, count, bottom, (low, high), x_scale, _RIDGE / tallest))
        middle = x_scale(min(max(float(values.double().median()), low), high))
        ends = f'x1="{middle:.1f}" x2="{middle:.1f}" y1="{bottom - _RIDGE}" y2="{bottom}"'
        parts.append(f'<line class="median arm-{escape(name)}" {ends}/>')
    parts.append(_text((WIDTH + _RIDGE_LEFT) / 2, height - 4, x_label, "middle"))
    return _svg(WIDTH, height, parts, f"histograms of {x_label}")


def _ridge(name: str, title: str, count: Tensor, bottom: float, span: Point, x_scale: Scale, unit: float) -> str:
    low, high = span
    width = (high - low) / len(count)
    steps: list[str] = []
    for index, share in enumerate(count.tolist()):
        y = bottom - share * unit
        steps += [f"{x_scale(low + index * width):.1f},{y:.1f}", f"{x_scale(low + (index + 1) * width):.1f},{y:.1f}"]
    outline = " ".join([f"{x_scale(low):.1f},{bottom}", *steps, f"{x_scale(high):.1f},{bottom}"])
    return f'<polygon class="area arm-{escape(name)}" points="{outline}"/>' + _text(
        _RIDGE_LEFT - 8, bottom - 4, title, "end"
    )


def legend(series: Sequence[Series]) -> str:
    """Names beside their colours."""
    items = "".join(
        f'<span><i class="swatch arm-{escape(line.name)}"></i>{escape(line.title)}</span>' for line in series
    )
    return f'<div class="legend">{items}</div>'


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _log_scale(low: float, high: float, start: float, end: float) -> Scale:
    inner = _scale(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(value))


def _dot(name: str, x: float, y: float, label: str) -> str:
    """A point with its label above it, inside the frame."""
    anchor = "start" if x < _LEFT + 12 else "end" if x > WIDTH - _RIGHT - 12 else "middle"
    look = f'class="dot arm-{escape(name)}" cx="{x:.1f}" cy="{y:.1f}" r="3"'
    return f"<circle {look}/>" + _text(x, y - 7, label, anchor, "label at")


def _y_axis(values: Sequence[float], scale: Scale) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{scale(v):.1f}" y2="{scale(v):.1f}"/>'
        + _text(_LEFT - 6, scale(v) + 4, f"{v:,g}", "end")
        for v in values
    )


def _x_axis(values: Sequence[float], scale: Scale, base: float, top: float | None = None) -> str:
    lines = (
        ""
        if top is None
        else "".join(
            f'<line class="grid" x1="{scale(v):.1f}" x2="{scale(v):.1f}" y1="{top}" y2="{base}"/>' for v in values
        )
    )
    return lines + "".join(_text(scale(v), base + 15, f"{v:,g}", "middle") for v in values)


def _axis_titles(x_label: str, y_label: str) -> str:
    turn = f"translate(11 {HEIGHT / 2:.0f}) rotate(-90)"
    title = f'<text class="label" transform="{turn}" text-anchor="middle">{escape(y_label)}</text>'
    return _text((WIDTH + _LEFT) / 2, HEIGHT - 4, x_label, "middle") + title


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], description: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )
