"""Views with the teacher's logits of each, in one file: made once, learned from by any student.

The idea of Shen and Xing 2022 (FKD, arXiv 2112.01528): the label of a crop is stored beside the crop's parameters, so
a student's epoch needs no teacher. A reader gets parameters and logits of a row out of the same file: the label of
another crop, or of the whole image, cannot come in between.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prism_fast.config import canonical, check_new_file, content_hash, replacing
from prism_fast.data.augment import Views
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.images import ImageSource
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import fingerprint, write_tensors
from prism_fast.synthesis.soft import pack_logits, soft_size, unpack_logits

_FORMAT = 1
_KEY = "views"
_FIELDS = tuple(field.name for field in dataclasses.fields(Views))
_CURE = "write it again with prism-fast student views"


def write_views(
    path: Path,
    augment: AugmentConfig,
    source: ImageSource,
    teacher: str,
    top_k: int | None,
    label: Callable[[int], tuple[Views, Tensor]],
    done: Callable[[int], object] = lambda _count: None,
) -> None:
    """Writes the views 0 .. ``augment.views`` - 1 of all images, whole or not at all.

    Args:
        path: a new file.
        augment: how the views are made.
        source: the images.
        teacher: its fingerprint.
        top_k: how many of an image's logits are kept, below K; None: all. The others are spread evenly.
        label: gives parameters and logits [N,K] of a view.
        done: told how many views of images were labelled.

    Raises:
        UserError: the place is taken or cannot be written; no number of views; logits that fp16 does not hold.
    """
    check_new_file(path)
    if augment.views is None:
        raise UserError("augment.views says how many views of each image are stored: set it, for instance to 8")
    if top_k is not None and not 0 < top_k < source.num_classes:
        raise UserError(f"top_k is {top_k}; it must be from 1 to {source.num_classes - 1}, or none")
    tensors: dict[str, Tensor] = {}
    for view in range(augment.views):
        table, logits = label(view)
        half = logits.half()
        if not half.isfinite().all():
            raise UserError("the teacher's logits do not fit fp16, or are not finite: take another teacher")
        packed = b"".join(pack_logits(row, top_k) for row in half.numpy())
        tensors[f"{view}/logits"] = torch.from_numpy(np.frombuffer(packed, np.uint8).copy()).view(len(source), -1)
        tensors |= {f"{view}/{name}": part for name, part in vars(table).items() if part is not None}
        done(len(source))
    about = {"format": _FORMAT, "augment": canonical(augment), "set": source.fingerprint, "images": len(source)}
    about |= {"teacher": teacher, "num_classes": source.num_classes, "top_k": top_k}
    with replacing(path) as staged:
        write_tensors(tensors, staged, {_KEY: json.dumps(about)})


class StoredViews:
    """What :func:`write_views` wrote, opened for one set. Rows are read from the file as they are needed.

    Attributes:
        count: how many views of each image there are.
        fingerprint: changes with set, teacher, views and logits.

    Raises:
        UserError: no such file, a damaged one, or one of another set or with other views than ``augment`` makes.
    """

    def __init__(self, path: str, augment: AugmentConfig, source: ImageSource) -> None:
        from safetensors import SafetensorError, safe_open

        self._path = Path(path).expanduser()
        if not self._path.is_file():
            raise UserError(f"no such file of views: {path}; prism-fast student views writes one")
        try:
            self._file: Any = safe_open(self._path, framework="pt", device="cpu")
            about = json.loads((self._file.metadata() or {})[_KEY])
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}")
            self._about = about
            self.count = int(about["augment"]["views"])
            self._top_k: int | None = about["top_k"]
            self._size = soft_size(int(about["num_classes"]), self._top_k)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no file of views, or a damaged one ({error!r}): {_CURE}") from error
        self._parts = {key.partition("/")[2] for key in self._file.keys()}  # noqa: SIM118 - not a mapping
        self._read: tuple[int, Tensor] = (-1, torch.empty(0))
        self._check(augment, source)
        self.fingerprint = content_hash([about, *(self._digest(view) for view in range(self.count))])

    def table(self, view: int) -> Views:
        """The parameters of a view of all images."""
        found = {name: self._tensor(view, name) for name in self._parts - {"logits"}}
        return Views(**{name: found.get(name) for name in _FIELDS})  # type: ignore[arg-type]

    def logits(self, view: int, rows: Tensor) -> Tensor:
        """The teacher's logits [B,K] of a view of the images of row numbers int64 [B].

        Raises:
            UserError: damaged ones.
        """
        if self._read[0] != view:
            self._read = view, self._tensor(view, "logits")
        packed = self._read[1][rows].numpy()
        try:
            found = [unpack_logits(row.tobytes(), self._about["num_classes"], self._top_k) for row in packed]
        except ValueError as error:
            raise UserError(f"{self._path} has {error} in view {view}: {_CURE}") from error
        return torch.from_numpy(np.stack(found))

    def _tensor(self, view: int, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(f"{view}/{name}")
        return tensor

    def _digest(self, view: int) -> str:
        return fingerprint({name: self._tensor(view, name) for name in self._parts}, view)

    def _check(self, augment: AugmentConfig, source: ImageSource) -> None:
        if (self._about["set"], self._about["images"]) != (source.fingerprint, len(source)):
            raise UserError(f"{self._path} has the views of another set of images: {_CURE} from this one")
        there, asked = self._about["augment"], canonical(augment)
        other = [f"augment.{name} {value!r}" for name, value in there.items() if asked.get(name) != value]
        if other:
            raise UserError(f"the views in {self._path} were made with {', '.join(other)}: give the same settings")
        wanted = {f"{view}/{name}" for view in range(self.count) for name in self._parts}
        shapes = {key: list(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118
        whole = set(shapes) == wanted and {"logits", "flip"} <= self._parts <= {"logits", *_FIELDS}
        whole = whole and all(shapes[f"{view}/logits"] == [len(source), self._size] for view in range(self.count))
        if not whole or any(shape[:1] != [len(source)] for shape in shapes.values()):
            raise UserError(f"{self._path} does not hold {self.count} views of {len(source)} images: {_CURE}")
