"""The validity gates of the built-in world (docs/study/protocol.md): ``python -m prism_fast.study.gates``.

They are measured on unguided samples and decide whether the world is one in which the method can fail.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import canonical, check_file, environment
from prism_fast.data.fashion_mnist import as_images, load_split
from prism_fast.errors import UserError
from prism_fast.metrics.accuracy import accuracy
from prism_fast.metrics.features import features
from prism_fast.metrics.prdc import prdc
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.pipeline.text import prompt_fits
from prism_fast.progress import progress
from prism_fast.prompts import PromptConfig, build_prompts, load_vocabulary
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.levels import make_sampler
from prism_fast.study.scripts import write_figures
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.plan import Plan, Row, sampler_arguments
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.load import load_teacher

PROMPTS = {
    "plain": PromptConfig(sense="name", content="none", style="none"),
    "oracle": PromptConfig(sense="gloss", content="frequency", style="photo"),
}
FIGURES = "gates.json"
SAMPLER = SamplerConfig(steps=20, cfg_scale=3.0, compute_batch=100)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One bound and what was measured: ``low <= value <= high``; None is no bound."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool:
        """Whether the bound holds."""
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


def made_from(pipe: Any, *classifiers: Teacher) -> dict[str, Any]:
    """Which weights figures are of, and where they were made: kept with every figure."""
    return {
        "pipeline": pipeline_fingerprint(pipe),
        "classifiers": [classifier.fingerprint for classifier in classifiers],
        "environment": environment(torch.device("cpu"), "float32"),
    }


def plan_of(pipe: Any, config: SynthesisConfig) -> Plan:
    """The plan of a configuration, prompts included."""
    vocabulary = load_vocabulary(config.vocabulary)
    return Plan(config, vocabulary, build_prompts(vocabulary, config.prompts, prompt_fits(pipe)))


def sample_rows(
    pipe: Any,
    config: SynthesisConfig,
    rows: Sequence[Row],
    teacher: Teacher | None = None,
    gate: GateThresholds | None = None,
) -> tuple[Tensor, Tensor]:
    """Images of some rows of a plan, in memory: uint8 [N, 3, H, W] and requested classes int64 [N]."""
    sampler = make_sampler(pipe, config.sampler, teacher, gate)
    batch = config.sampler.compute_batch
    images = []
    with progress(len(rows), "images", config.recipe) as bar:
        for part in (rows[start : start + batch] for start in range(0, len(rows), batch)):
            images.append(sampler.sample(*sampler_arguments(part)).images)
            bar.update(len(part))
    return torch.cat(images), torch.tensor([row.class_index for row in rows])


def balanced(images: Tensor, labels: Tensor, count: int) -> Tensor:
    """The first ``count`` images, as many of each class: uint8 [count, 3, 32, 32].

    Args:
        images, labels: uint8 [N, 28, 28] and int64 [N].
        count: how many.

    Raises:
        UserError: they cannot be shared out evenly, or a class has too few.
    """
    classes = int(labels.max()) + 1
    rows = torch.cat([torch.nonzero(labels == c).flatten()[: count // classes] for c in range(classes)])
    if len(rows) != count:
        most = classes * int(torch.bincount(labels, minlength=classes).min())
        raise UserError(
            f"{count} real images, as many of each of {classes} classes, cannot be had: give a multiple of {classes}, "
            f"at most {most}"
        )
    return as_images(images[rows])


@torch.no_grad()
def reconstruct(pipe: Any, images: Tensor, batch: int = 100) -> Tensor:
    """uint8 [N, 3, H, W] through the pipeline's VAE and back (the posterior's mode)."""
    parts = []
    for part in images.split(batch):
        latents = pipe.vae.encode(part.float() / 127.5 - 1).latent_dist.mode()
        parts.append(((pipe.vae.decode(latents).sample + 1) * 127.5).round().clamp(0, 255).byte())
    return torch.cat(parts)


def measure(pipe: Any, teacher: Teacher, judge: Teacher, count: int, reconstructed: int) -> dict[str, Any]:
    """All figures of the first four gates, and the gates. The real images are those of split V.

    Args:
        pipe, teacher, judge: the built-in ones.
        count: images an arm, and real ones that each is compared with.
        reconstructed: real images through the VAE; all where there are fewer.

    Raises:
        UserError: there are not as many real images of each class.
    """
    real, labels = load_split("V")
    compared = balanced(real, labels, count)
    subset, labels_of_subset = as_images(real[:reconstructed]), labels[:reconstructed]
    direct = accuracy(teacher, subset, labels_of_subset).value
    through = accuracy(teacher, reconstruct(pipe, subset), labels_of_subset).value
    reference = features(judge, compared)
    arms: dict[str, dict[str, Any]] = {}
    sampled = {}
    for name, prompts in PROMPTS.items():
        config = SynthesisConfig(
            recipe=name,
            images=count,
            prompts=prompts,
            sampler=SAMPLER,
        )
        plan = plan_of(pipe, config)
        images, classes = sampled[name] = sample_rows(pipe, config, [plan.row(i) for i in range(len(plan))])
        overlap = prdc(reference, features(judge, images))
        agreed = accuracy(teacher, images, classes)
        arms[name] = {
            "teacher_agreement": agreed.value,
            "judge_agreement": accuracy(judge, images, classes).value,
            "by_class": agreed.by_class,
            "precision": overlap.precision,
            "recall": overlap.recall,
            "density": overlap.density,
            "coverage": overlap.coverage,
        }
    gates = [
        Gate(name="teacher on reconstructed / real", value=through / direct, low=0.95),
        Gate(name="plain teacher agreement", value=arms["plain"]["teacher_agreement"], low=0.5, high=0.75),
        Gate(name="oracle teacher agreement", value=arms["oracle"]["teacher_agreement"], low=0.85),
        Gate(name="plain recall / oracle recall", value=arms["plain"]["recall"] / max(arms["oracle"]["recall"], 1e-9),
             high=0.7),
    ]  # fmt: skip
    rows = [{"name": g.name, "value": round(g.value, 4), "low": g.low, "high": g.high, "met": g.met} for g in gates]
    return {
        "images": count,
        "reconstructed": len(subset),
        "sampler": canonical(SAMPLER),
        "teacher_on_real": direct,
        "arms": arms,
        "gates": rows,
        "sampled": sampled,
        **made_from(pipe, teacher, judge),
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints the gates; ``--out`` keeps the figures and a picture of each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="images an arm")
    parser.add_argument("--reconstructed", type=int, default=2000, help="real images through the VAE")
    parser.add_argument("--pipeline", default="fashion")
    parser.add_argument("--out", type=Path, help="folder for gates.json and grids")
    options = parser.parse_args(arguments)
    try:
        if options.out:
            check_file(options.out / FIGURES)  # before the measuring, which takes minutes
        pipe, teacher, judge = load_pipeline(options.pipeline), load_teacher("fashion"), load_teacher("fashion-judge")
        result = measure(pipe, teacher, judge, options.images, options.reconstructed)
    except UserError as error:
        parser.error(str(error))
    sampled = result.pop("sampled")
    for gate in result["gates"]:
        mark = "met" if gate["met"] else "MISSED"
        bounds = [f"{word} {gate[key]}" for word, key in (("at least", "low"), ("at most", "high")) if gate[key]]
        print(f"{gate['name']:34s} {gate['value']:.3f}  {' and '.join(bounds)}: {mark}")
    for name, arm in result["arms"].items():
        print(name, {k: round(v, 3) for k, v in arm.items() if isinstance(v, float)})
    if options.out:
        from torchvision.utils import save_image

        write_figures(options.out / FIGURES, result)
        for name, (images, _) in sampled.items():
            save_image(images[:100].float() / 255, str(options.out / f"{name}.png"), nrow=10, padding=1)


if __name__ == "__main__":
    main()
