"""What a folder of shards says about itself: ``_info.json`` and the ``.json`` of each published shard, checked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard, cast

from prism_fast.errors import UserError
from prism_fast.synthesis.images import IMAGE_FORMATS, ImageFormat
from prism_fast.synthesis.regular_file import read_regular
from prism_fast.synthesis.shards import INFO_FILE, LABEL_MEMBERS, shard_name
from prism_fast.synthesis.soft import describe_logits

MAX_INFO_BYTES = 1 << 26
"""Of ``_info.json``: a million classes and shards have room. Parsed JSON takes up to 20 times its text."""

MAX_STATS_BYTES = 1 << 20
"""Of a shard's ``.json``."""

MAX_CLASSES = 10**6
MAX_SHARDS = 10**6


@dataclass(frozen=True)
class Published:
    """A shard that is there.

    Attributes:
        number: of the shard.
        images: that it holds.
        size_bytes, sha256: of its archive.
        index_sha256: of its index; None where it does not say.
        config_hash: of the set that it says it belongs to; None where it does not say.
    """

    number: int
    images: int
    size_bytes: int
    sha256: str
    index_sha256: str | None
    config_hash: str | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A set of shards, by its own account.

    Args:
        info: all of ``_info.json``.
        num_classes: K.
        class_names: in the order of the labels.
        image_format: of the image files.
        top_k: how many of the K logits ``.soft`` holds, the largest ones; None: all.
        planned: shards that the set will have.
        shards: those that are published, in order.
    """

    info: dict[str, Any]
    num_classes: int
    class_names: tuple[str, ...]
    image_format: ImageFormat
    top_k: int | None
    planned: int
    shards: tuple[Published, ...]


def read_manifest(folder: Path, only: Sequence[int] | None = None) -> Manifest:
    """Reads and checks what ``folder`` says; opens no archive.

    Args:
        folder: of the set.
        only: numbers of the shards to read of, which are published; None: all that are.

    Raises:
        UserError: no such set, or a damaged one; the file is named.
    """
    said = read_set(folder)
    if only is None:
        names = {entry.name for entry in os.scandir(folder)}
        numbers = [number for number in range(said.planned) if shard_name(number, "json") in names]
    else:
        numbers = sorted(only)
    return replace(said, shards=tuple(_published(folder / shard_name(number, "json"), number) for number in numbers))


def read_set(folder: Path) -> Manifest:
    """What ``_info.json`` says, without the shards.

    Raises:
        UserError: no such set, or a damaged ``_info.json``.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: make a set with `prism-fast synthesize --out {folder}`")
    path = folder / INFO_FILE
    if not os.path.lexists(path):
        raise UserError(f"{folder} holds no shards (no {INFO_FILE}): give a folder that synthesize wrote")
    info = read_json(path, MAX_INFO_BYTES)
    planned = info.get("shards")
    if not is_whole(planned, 1, MAX_SHARDS):
        raise UserError(f"damaged {path}: it does not say how many shards there are")
    return Manifest(
        info=info,
        num_classes=len(_class_names(path, info)),
        class_names=_class_names(path, info),
        image_format=_image_format(path, info),
        top_k=_top_k(path, info),
        planned=planned,
        shards=(),
    )


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A file of at most ``limit`` bytes that holds a JSON object.

    Raises:
        UserError: it cannot be read, is too large, no regular file or no such JSON.
    """
    try:
        data = read_regular(path, limit)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return parse_object(data)
    except ValueError as error:
        raise UserError(f"damaged {path}: {error}") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """JSON, which has no NaN and no infinities, of an object.

    Raises:
        ValueError: it is none, nested too deeply, or has a number of too many digits.
    """
    try:
        value = _DECODER.decode(data.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _class_names(path: Path, info: dict[str, Any]) -> tuple[str, ...]:
    names = info.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"damaged {path}: it does not name its classes")
    if not 1 <= len(names) <= MAX_CLASSES or info.get("num_classes") != len(names):
        raise UserError(f"damaged {path}: {info.get('num_classes')} classes with {len(names)} names")
    return tuple(names)


def _image_format(path: Path, info: dict[str, Any]) -> ImageFormat:
    members = info.get("members")
    if not isinstance(members, list) or members[1:] != list(LABEL_MEMBERS) or members[0] not in IMAGE_FORMATS:
        raise UserError(
            f"{path} describes members {members}; readable are one of {', '.join(IMAGE_FORMATS)}, then "
            f"{', '.join(LABEL_MEMBERS)}"
        )
    return cast("ImageFormat", members[0])


def _top_k(path: Path, info: dict[str, Any]) -> int | None:
    logits, num_classes = info.get("logits"), info["num_classes"]
    top_k = logits.get("top_k") if isinstance(logits, dict) else None
    if top_k is None:
        return None
    if not is_whole(top_k, 1, num_classes - 1) or logits != describe_logits(num_classes, top_k):
        raise UserError(f"{path} describes logits {logits}: not the largest of {num_classes} as synthesize keeps them")
    return top_k


def _published(path: Path, number: int) -> Published:
    stats = read_json(path, MAX_STATS_BYTES)
    files, images = stats.get("files"), stats.get("images")
    tar = files.get("tar") if isinstance(files, dict) else None
    if not isinstance(tar, dict) or not is_whole(images, 0, MAX_SHARDS):
        raise UserError(f"damaged {path}: it does not describe a shard; synthesize again to make it anew")
    size_bytes, sha256 = tar.get("bytes"), tar.get("sha256")
    if not is_whole(size_bytes, 0, 1 << 62) or not isinstance(sha256, str):
        raise UserError(f"damaged {path}: it does not describe its archive; synthesize again to make it anew")
    index = files.get("idx") if isinstance(files, dict) else None
    index_sha256 = index.get("sha256") if isinstance(index, dict) else None
    return Published(number, images, size_bytes, sha256, _text(index_sha256), _text(stats.get("config_hash")))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def is_whole(value: object, low: int, high: int) -> TypeGuard[int]:
    """Whether it is an integer from ``low`` to ``high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
