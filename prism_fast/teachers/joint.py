"""A classifier's energy and its gradient as one module of plain operators: what exporters and compilers are given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prism_fast.energy.batch_norm import BatchNormStatistics
from prism_fast.energy.student import StudentDivergence, Where, student_tap
from prism_fast.energy.terms import Outputs
from prism_fast.teachers.asked import NOTHING, TERMS, Further
from prism_fast.teachers.eager import TAP_HEADROOM, EagerTeacher, scaled
from prism_fast.teachers.preprocess import Preprocess, resize_matrix
from prism_fast.teachers.traced import Forward, Network, trace


def logit_terms(logits: Tensor, targets: Tensor, temperature: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Σ w_i·E_i of :data:`TERMS` and its cotangent, with everything but the logits' shape an input.

    Args:
        logits: f [B, K], fp32 or fp64.
        targets: one-hot [B, K] in the logits' dtype.
        temperature: T > 0, shape [].
        weights: [4], in the order of ``TERMS``.

    Returns:
        energy [B] and d energy_i / d f_i [B, K].
    """
    free, joint, class_, entropy = weights.unbind()
    warm = logits / temperature
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    chosen = (logits * targets).sum(-1)
    spread = -(p * log_p).sum(-1)
    # logsumexp as the largest plus what log_softmax has left of it: one reduction less than asking again
    total = (logits - log_p)[:, 0]
    energy = -free * temperature * torch.logsumexp(warm, -1) - joint * chosen
    energy = energy + class_ * (total - chosen) + entropy * spread
    others = p * (1 - targets)
    # p_y − 1 as −Σ_{j≠y} p_j: a certain target would cancel to zero
    cross = others - targets * others.sum(-1, keepdim=True)
    cotangent = -free * torch.softmax(warm, -1) - joint * targets + class_ * cross
    return energy, cotangent - entropy * p * (log_p + spread[:, None])


def cotangent_scale(cotangents: Sequence[Tensor]) -> Tensor:
    """[B]: one power of two for all cotangents [B, ...] of an image, in operators that ONNX has.

    It brings the largest |element| to [1, 2), or to 256 times that where there are others than those of logits: as
    :func:`prism_fast.teachers.eager.common_scale`.
    """
    largest = torch.stack([each.flatten(1).abs().amax(-1) for each in cotangents]).amax(0).clamp(1e-30, 1e30)
    scale = torch.exp2(-torch.floor(torch.log2(largest)))
    return scale * TAP_HEADROOM if len(cotangents) > 1 else scale


class Eye(torch.nn.Module):
    """A network with what makes its input of images: resize and normalisation, as matrix products.

    Args:
        forward: the network.
        preprocess: images in [0, 1] to its input.
        source: (height, width) of the images that come in; another size than the network's is resized.
        body: dtype of the network; everything around it is at least fp32.
    """

    image_mean: Tensor
    image_std: Tensor
    resize_rows: Tensor
    resize_columns: Tensor

    def __init__(self, forward: Forward, preprocess: Preprocess, source: tuple[int, int], body: torch.dtype) -> None:
        super().__init__()
        self.network, self.body = Network(forward, body), body
        self.wide = torch.promote_types(body, torch.float32)
        self.resized = source != preprocess.input_size
        self.register_buffer("image_mean", preprocess.mean.to(self.wide))
        self.register_buffer("image_std", preprocess.std.to(self.wide))
        if self.resized:
            for name, size, target in zip(
                ("resize_rows", "resize_columns"), source, preprocess.input_size, strict=True
            ):
                matrix = resize_matrix(size, target, preprocess.interpolation)
                self.register_buffer(name, matrix.to(self.wide))

    def seen(self, images: Tensor) -> tuple[Outputs, Callable[[Outputs], Tensor]]:
        """Logits and taps of images [B, 3, *source] in [0, 1], and a function from their cotangents to the images'."""
        x = self.resize_rows @ images @ self.resize_columns.T if self.resized else images
        x = (x - self.image_mean) / self.image_std
        outputs, pull = self.network.pulled(x.to(self.body))

        def back(cotangents: Outputs) -> Tensor:
            taps = {name: each.to(self.body) for name, each in cotangents.taps.items()}
            gradient = pull(Outputs(logits=cotangents.logits.to(self.body), taps=taps)).to(self.wide) / self.image_std
            return self.resize_rows.T @ gradient @ self.resize_columns if self.resized else gradient

        return Outputs(logits=outputs.logits.to(self.wide), taps=outputs.taps), back


class JointEnergy(torch.nn.Module):
    """(images, targets, temperature, weights) → (energy, gradient, logits), without autograd.

    In fp16 each image's cotangents are scaled by a power of two, and the gradient back.

    Args:
        teacher: the classifier; its taps are those that ``statistics`` reads.
        student: another one, in −KL(teacher ‖ student).
        statistics: of the teacher's batch-norm layers.
        where: which images the divergence from the student counts for.
    """

    def __init__(
        self,
        teacher: Eye,
        student: Eye | None = None,
        statistics: BatchNormStatistics | None = None,
        where: Where = "all",
    ) -> None:
        super().__init__()
        self._divergence = StudentDivergence(fingerprint="", where=where)
        self.teacher, self.student = teacher, student
        self.body, self.wide = teacher.body, teacher.wide
        self._statistics = None if statistics is None else _in(statistics, self.wide)

    def forward(
        self, images: Tensor, targets: Tensor, temperature: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: [B, 3, *source] in [0, 1].
            targets: one-hot [B, K].
            temperature: T, shape [].
            weights: of :data:`prism_fast.teachers.asked.TERMS`, then of statistics and student where they are there.

        Returns:
            energy [B], d energy_i / d image_i [B, 3, *source], logits [B, K], all at least fp32.
        """
        said, back = self.teacher.seen(images)
        energy, cotangent = logit_terms(said.logits, targets, temperature, weights[: len(TERMS)])
        further = list(weights[len(TERMS) :].unbind())
        taps: dict[str, Tensor] = {}
        if self._statistics is not None:
            weight = further.pop(0)
            part, along = self._statistics.value_and_cotangents(said, targets)
            energy = energy + weight * part
            taps = {name: weight * tap for name, tap in along.taps.items()}
        if self.student is None:
            (gradient,) = _pulled([(back, Outputs(logits=cotangent, taps=taps))], self.body)
            return energy, gradient, said.logits
        weight = further.pop(0)
        learned, student_back = self.student.seen(images)
        both = Outputs(logits=said.logits, taps={student_tap(""): learned.logits})
        part, along = self._divergence.value_and_cotangents(both, targets)
        cotangent = cotangent + weight * along.logits
        of_student = Outputs(logits=weight * along.taps[student_tap("")])
        own, others = _pulled([(back, Outputs(logits=cotangent, taps=taps)), (student_back, of_student)], self.body)
        return energy + weight * part, own + others, said.logits


def _pulled(pairs: Sequence[tuple[Callable[[Outputs], Tensor], Outputs]], body: torch.dtype) -> list[Tensor]:
    """What each pullback makes of its cotangents, with one scale for all of them where the body is fp16."""
    if body != torch.float16:
        return [back(cotangents) for back, cotangents in pairs]
    scale = cotangent_scale([each for _, along in pairs for each in (along.logits, *along.taps.values())])
    found = []
    for back, along in pairs:
        taps = {name: scaled(tap, scale) for name, tap in along.taps.items()}
        gradient = back(Outputs(logits=scaled(along.logits, scale), taps=taps))
        found.append(gradient / scale[:, None, None, None])
    return found


def _in(statistics: BatchNormStatistics, dtype: torch.dtype) -> BatchNormStatistics:
    """With running ones in a graph's own dtype, on the CPU."""
    running = {
        name: replace(each, mean=each.mean.cpu().to(dtype), variance=each.variance.cpu().to(dtype))
        for name, each in statistics.running.items()
    }
    return replace(statistics, running=running)


def joint_module(
    teacher: EagerTeacher, size: tuple[int, int], dtype: torch.dtype, further: Further = NOTHING
) -> JointEnergy:
    """The teacher's energy and gradient as a module on the CPU.

    Args:
        teacher: the classifier.
        size: (height, width) of the images that come in.
        dtype: of the teacher's network.
        further: terms beyond those on logits.

    Raises:
        UserError: a network cannot be traced, or has an operator without a gradient rule.
    """
    (made,) = joint_modules(teacher, size, (dtype,), further)
    return made


def joint_modules(
    teacher: EagerTeacher, size: tuple[int, int], dtypes: Sequence[torch.dtype], further: Further = NOTHING
) -> list[JointEnergy]:
    """As :func:`joint_module`, in several precisions from one trace."""
    statistics, student = further.statistics, further.student
    teachers = _eyes(teacher, size, dtypes, () if statistics is None else statistics.needed_taps)
    students: Sequence[Eye | None] = [None] * len(dtypes)
    if student is not None:
        # one in a wider dtype keeps it, as on the eager teacher
        students = _eyes(student, size, [torch.promote_types(dtype, student.dtype) for dtype in dtypes])
    return [
        JointEnergy(*eyes, statistics, further.student_where).eval() for eyes in zip(teachers, students, strict=True)
    ]


def _eyes(
    network: EagerTeacher, size: tuple[int, int], dtypes: Sequence[torch.dtype], taps: Sequence[str] = ()
) -> list[Eye]:
    """The network in several precisions from one trace."""
    forward = trace(copy.deepcopy(network.model).cpu().float(), network.input_size, taps)
    return [Eye(forward, preprocess_of(network), size, dtype) for dtype in dtypes]


def preprocess_of(network: EagerTeacher) -> Preprocess:
    """Images in [0, 1] to the network's input, on the CPU."""
    return Preprocess(network.input_size, network.mean, network.std, network.interpolation)
