"""The pictures of a pilot as PNG: the agreement matrix, and samples with the teacher's verdict."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from prism_fast.pilot.agreement import Agreement
from prism_fast.pilot.draw import Drawn

COLUMNS = 8
"""Images of a class."""
_CELL, _GAP, _MARK, _NAME = 64, 3, 4, 150
_GOOD, _BAD = (46, 160, 107), (200, 60, 60)
_WRITTEN = 16
"""Columns up to which shares are written into the cells."""


def matrix_picture(found: Agreement, names: Sequence[str]) -> bytes:
    """PNG of shares: a row for each class asked for, a column for each that the teacher says."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = found.shown()
    counts = found.counts[rows]
    shown = counts[:, columns]
    labels = [_short(names[c]) for c in columns]
    if len(columns) < found.counts.shape[1] and int(counts.sum() - shown.sum()):
        shown = torch.cat([shown, (counts.sum(1) - shown.sum(1))[:, None]], 1)
        labels.append("others")
    shares = (shown.double() / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = 0.34 if len(labels) > _WRITTEN else 0.5
    figure = Figure(figsize=(2.6 + side * len(labels), 1.9 + side * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [_short(names[found.classes[row]]) for row in rows], fontsize=8)
    axes.set_xlabel("the teacher says")
    axes.set_ylabel("asked for")
    for place, row in enumerate(rows):
        column = columns.index(found.classes[row])
        axes.add_patch(_frame(column, place))
    if len(labels) <= _WRITTEN:
        for (y, x), share in _cells(shares):
            colour = "white" if share > 0.6 else "#333333"
            axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the images asked for")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#2ea06b", linewidth=1.4)


def _cells(shares: Any) -> list[tuple[tuple[int, int], float]]:
    return [((y, x), float(share)) for y, row in enumerate(shares) for x, share in enumerate(row) if share > 0]


def samples_picture(drawn: Drawn, found: Agreement, names: Sequence[str]) -> bytes:
    """PNG of a few images of each class that the matrix shows; green below: the teacher agrees, red: it does not."""
    rows, _ = found.shown()
    classes = [found.classes[row] for row in rows]
    numbers = {c: (drawn.asked == c).nonzero()[:COLUMNS, 0].tolist() for c in classes}
    width = _NAME + max(map(len, numbers.values())) * (_CELL + _GAP)
    line = _CELL + _MARK + 2 * _GAP
    sheet = Image.new("RGB", (width, len(classes) * line), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, c in enumerate(classes):
        top = place * line
        hits, images = int(found.hits[rows[place]]), int(found.images[rows[place]])
        draw.text((2, top + _CELL // 2 - 18), _short(names[c]), fill=(40, 40, 40), font=font)
        draw.text((2, top + _CELL // 2), f"{hits} of {images}", fill=(120, 120, 120), font=font)
        for turn, number in enumerate(numbers[c]):
            left = _NAME + turn * (_CELL + _GAP)
            sheet.paste(_image(drawn.small[number]), (left, top))
            colour = _GOOD if drawn.said[number] == c and bool(drawn.finite[number]) else _BAD
            draw.rectangle((left, top + _CELL + 1, left + _CELL - 1, top + _CELL + _MARK), fill=colour)
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _image(pixels: Tensor) -> Image.Image:
    """Fitted into a square cell."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = _CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    cell = Image.new("RGB", (_CELL, _CELL), "white")
    fitted = picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
    cell.paste(fitted, ((_CELL - size[0]) // 2, (_CELL - size[1]) // 2))
    return cell


def _short(name: str, most: int = 20) -> str:
    """Its beginning and its end, where numbers and kinds stand."""
    return name if len(name) <= most else f"{name[: most - 9]}…{name[-8:]}"
