"""Pictures of samples: for each class a row unguided and, below, the same prompts and seeds guided."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from prism_fast.study.pairs import Pair, Side

COLUMNS = 10
ZOOM = 2
THUMBNAIL = 96
"""Pixels of the longer side of an image that is shown beside others."""
_GAP = 2
_MARK = 3
_MARK_COLOUR = (46, 160, 107)


def class_picture(pair: Pair, class_index: int, columns: int = COLUMNS) -> bytes:
    """PNG of the first ``columns`` pairs of a class: unguided above, guided below, transparent between.

    A green bar under an image says that the judge takes it for its class.
    """
    return _png(_class_strip(pair, class_index, columns))


def overview(pair: Pair, names: Sequence[str], columns: int = COLUMNS) -> bytes:
    """PNG of all classes with their names, in two columns of classes, for use outside the report."""
    strips = [_class_strip(pair, index, columns) for index in range(len(names))]
    label, gap = 18, 14
    width, height = strips[0].size
    rows = -(-len(strips) // 2)
    sheet = Image.new("RGB", (2 * width + gap + 2 * gap, rows * (height + label + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for place, (name, strip) in enumerate(zip(names, strips, strict=True)):
        column, row = divmod(place, rows)
        left, top = gap + column * (width + gap), gap // 2 + row * (height + label + gap)
        draw.text((left, top), name, fill=(70, 70, 70), font=font)
        sheet.paste(strip, (left, top + label), strip)
    return _png(sheet)


def paired_rows(above: Sequence[Tensor], below: Sequence[Tensor]) -> bytes:
    """PNG of two rows of images uint8 [3,H,W] of any sizes, cell by cell, transparent between."""
    shown = [[Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in row] for row in (above, below)]
    side = min(THUMBNAIL, ZOOM * max(image.height for row in shown for image in row))
    cell = side + _GAP
    sheet = Image.new("RGBA", (len(above) * cell - _GAP, 2 * cell - _GAP), (0, 0, 0, 0))
    for line, row in enumerate(shown):
        for place, image in enumerate(row):
            small = max(image.size) < side
            way = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            scale = side / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            sheet.paste(image.resize(size, way), (place * cell, line * cell))
    return _png(sheet)


def paired_columns(png: bytes) -> int:
    """How many cells a row of a picture of :func:`paired_rows` has."""
    width, height = Image.open(io.BytesIO(png)).size
    return 2 * (width + _GAP) // (height + _GAP)


def _class_strip(pair: Pair, class_index: int, columns: int) -> Image.Image:
    rows = (pair.classes == class_index).nonzero()[:columns, 0]
    side = pair.unguided.images.shape[-1] * ZOOM
    cell = side + _GAP
    line = side + _MARK + 2 * _GAP
    sheet = Image.new("RGBA", (columns * cell - _GAP, 2 * line), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for top, half in ((0, pair.unguided), (line, pair.guided)):
        for place, row in enumerate(rows.tolist()):
            left = place * cell
            sheet.paste(_image(half, row, side), (left, top))
            if half.judge[row]:
                draw.rectangle((left, top + side + 1, left + side - 1, top + side + _MARK), fill=_MARK_COLOUR)
    return sheet


def _image(half: Side, row: int, side: int) -> Image.Image:
    pixels: Tensor = half.images[row].permute(1, 2, 0).contiguous().to(torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.NEAREST)


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()
