"""Where teacher and student disagree: the negative divergence of a frozen student snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from prism_fast.energy.terms import Network, Outputs
from prism_fast.wide import wide

Where = Literal["all", "agree"]


def student_tap(fingerprint: str) -> str:
    """The name under which the logits of a snapshot stand among the taps."""
    return f"student:{fingerprint}"


@dataclass(frozen=True, kw_only=True)
class StudentDivergence:
    """−KL(p ‖ q) in nats, p = softmax(teacher's logits), q = softmax(student's logits of the same images).

    Low where the student has not learned yet what the teacher says: images that teach it something. The adversarial
    exploration of data-free distillation (Fang et al. 2019, arXiv 1912.11006, with another distance). It has no bound
    below, so it wants a small weight beside terms that keep images recognisable.

    Args:
        fingerprint: 16 hex digits that name the snapshot.
        network: the snapshot, for teachers that have to run it; None where its logits are handed in as the tap.
        where: ``all`` images, or those of whose first choice teacher and student ``agree`` (DiffDFKD, Qi et al. 2025,
            arXiv 2504.00870); of the others the energy is zero. Which these are is taken as given: no derivative
            passes through the choice.
    """

    fingerprint: str
    network: Network | None = field(default=None, repr=False, compare=False)
    where: Where = "all"

    def __post_init__(self) -> None:
        if self.where not in get_args(Where):
            raise ValueError(f"where must be {' or '.join(get_args(Where))}, not {self.where!r}")

    @property
    def needed_taps(self) -> tuple[str, ...]:
        """The student's logits."""
        return (student_tap(self.fingerprint),)

    @property
    def networks(self) -> Mapping[str, Network]:
        """The student, where it was given."""
        return {} if self.network is None else {student_tap(self.fingerprint): self.network}

    @property
    def coupled(self) -> bool:
        """No."""
        return False

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:  # noqa: ARG002  the protocol's signature
        log_p, log_q = self._logarithms(outputs)
        return self._counted(-(log_p.exp() * (log_p - log_q)).sum(-1), outputs)

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:
        value = self.value(outputs, targets).detach()
        log_p, log_q = (part.detach() for part in self._logarithms(outputs))
        p, q = log_p.exp(), log_q.exp()
        # KL = Σ p (log p − log q): dKL/df_j = p_j (log p_j − log q_j − KL), dKL/dg_j = q_j − p_j
        logits = self._counted(-p * (log_p - log_q + value[:, None]), outputs)
        return value, Outputs(logits=logits, taps={student_tap(self.fingerprint): self._counted(p - q, outputs)})

    def _counted(self, values: Tensor, outputs: Outputs) -> Tensor:
        """[B] or [B, K], zero for images that do not count."""
        if self.where == "all":
            return values
        teacher, student = wide(outputs.logits), wide(outputs.taps[student_tap(self.fingerprint)])
        agree = (teacher.argmax(-1) == student.argmax(-1)).to(values)
        return values * (agree if values.dim() == 1 else agree[:, None])

    def _logarithms(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        student = outputs.taps[student_tap(self.fingerprint)]
        return wide(outputs.logits).log_softmax(-1), wide(student).log_softmax(-1)
