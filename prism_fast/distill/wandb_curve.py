"""The training curve in Weights & Biases, beside TensorBoard's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism_fast.config import canonical, content_hash
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.curve import CurveFactory, PointSink
from prism_fast.errors import UserError


def load_wandb() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"the setting wandb needs a package that is not there ({error}): pip install 'prism_fast[wandb]', "
            "or leave wandb out"
        ) from error
    return wandb


class _Both:
    """Points to TensorBoard and to a run of wandb."""

    def __init__(self, curve: PointSink, run: Any) -> None:
        self._curve, self._run = curve, run

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._curve.add(step, values)
        self._run.log({f"train/{name}": value for name, value in values.items()}, step=step)


def also_to_wandb(wandb: Any, config: DistillConfig, identity: str, open_curve: CurveFactory) -> CurveFactory:
    """Curves that go to ``open_curve``'s place and to the project ``config.wandb``.

    A resumed run continues its own there. Another one in the same place is a new one: wandb drops steps that it had.
    """
    name = content_hash([identity, str(Path(config.out).absolute())])

    @contextmanager
    def opened(folder: Path, purge_step: int | None) -> Iterator[PointSink]:
        with open_curve(folder, purge_step) as curve:
            run = wandb.init(
                project=config.wandb, id=name, resume="allow", dir=str(folder.parent), config=canonical(config)
            )
            try:
                yield _Both(curve, run)
            finally:
                run.finish()

    return opened
