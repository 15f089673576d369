"""What a classifier has to answer: one logit for each of its classes. Probabilities are refused by name."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.weights import in_short, load_errors

_log = logging.getLogger(__name__)

_NORMALISED = 1e-3
"""Sums of probabilities are one to this accuracy, in half precision too."""

_VIEWS = tuple(
    f"{name}Backward"
    for name in ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "ToCopy",
                 "Clone", "Alias", "Slice", "Select", "Expand")
)  # fmt: skip
"""Of autograd's names, those of operators that leave values what they are."""

MULTI_LABEL = "a multi-label teacher has no energy over classes: take a classifier trained with cross-entropy"
LOGITS_NEEDED = "the energy is made of logits: take what goes into it"


@torch.enable_grad()
def check_answer(model: Any, input_size: tuple[int, int], num_classes: int | None, what: str, cure: str) -> int:
    """A grey image and three of noise go through: settings that do not go together show only there.

    Args:
        model: in eval mode, parameters frozen; maps [B, 3, h, w] to logits [B, K].
        input_size: (h, w).
        num_classes: K that is expected; None: whatever it answers.
        what: the teacher, for messages.
        cure: where input size and arguments can be corrected.

    Returns:
        K.

    Raises:
        UserError: it cannot take the images, answers something else than [B, K], or not logits, or lets no gradient
            through.
    """
    height, width = input_size
    noise = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    images = torch.cat([torch.zeros(1, 3, height, width), noise]).requires_grad_()
    activations = _Activations(model)
    try:
        logits = model(images)
    except load_errors() as error:
        raise UserError(
            f"{what} cannot take images of {height}x{width} pixels ({in_short(error)}): correct {cure}"
        ) from error
    finally:
        activations.remove()
    if not isinstance(logits, Tensor):
        raise UserError(f"{what} answers with a {type(logits).__name__}: it has to return its logits, a tensor [B, K]")
    shape = tuple(logits.shape)
    if (
        len(shape) != 2
        or shape[0] != len(images)
        or not shape[1]
        or (num_classes is not None and shape[1] != num_classes)
    ):
        classes = f"its {num_classes} classes" if num_classes is not None else "its classes"
        raise UserError(
            f"{what} answers {len(images)} images with shape {shape}, expected one logit for each of {classes}: "
            "take a classifier"
        )
    if not logits.requires_grad:
        raise UserError(f"{what} lets no gradient through to the image: take no_grad and detach out of its forward")
    _refuse_probabilities(logits.detach(), activations.last(logits) or _function_of(logits), what)
    return int(shape[1])


def _refuse_probabilities(logits: Tensor, last: str, what: str) -> None:
    wide = logits.double()
    if not wide.isfinite().all():
        raise UserError(f"{what} answers noise with numbers that are not finite: its weights are damaged")
    if wide.shape[1] == 1:
        raise UserError(f"{what} has one output, as sigmoid teachers of two classes have: {MULTI_LABEL}")
    inside = bool(((wide >= 0) & (wide <= 1)).all())
    if inside and bool(((wide.sum(1) - 1).abs() < _NORMALISED).all()):
        raise UserError(f"{what} ends in a softmax (its answers are probabilities that sum to one): {LOGITS_NEEDED}")
    if bool((wide.logsumexp(1).abs() < _NORMALISED).all()):
        raise UserError(f"{what} ends in a log-softmax (its answers are logarithms of probabilities): {LOGITS_NEEDED}")
    if inside and last:
        raise UserError(f"{what} ends in a {last}, so it answers each class by itself: {MULTI_LABEL}")
    if inside:
        _log.warning(
            "%s: every answer to noise is between 0 and 1; if they come out of a sigmoid, %s", what, MULTI_LABEL
        )


def _function_of(logits: Tensor) -> str:
    """``sigmoid`` where a function of that name has the last word, views and conversions left aside; else empty."""
    node: Any = logits.grad_fn
    while node is not None:
        name = type(node).__name__
        if name.startswith(("SigmoidBackward", "HardsigmoidBackward")):
            return "sigmoid"
        if not name.startswith(_VIEWS):
            return ""
        node = node.next_functions[0][0] if node.next_functions else None
    return ""


class _Activations:
    """Watches a network's sigmoids, to see whether one of them has the last word."""

    def __init__(self, model: Any) -> None:
        self._answers: list[Tensor] = []
        watched = [each for each in model.modules() if isinstance(each, torch.nn.Sigmoid | torch.nn.Hardsigmoid)]
        self._hooks = [each.register_forward_hook(self._keep) for each in watched]

    def _keep(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self._answers.append(output)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def last(self, logits: Tensor) -> str:
        """``sigmoid`` where the answer is what one of them gave; else empty."""
        same = any(
            each.numel() == logits.numel() and torch.equal(each.reshape_as(logits), logits) for each in self._answers
        )
        return "sigmoid" if same else ""
