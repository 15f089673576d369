"""Retrains the built-in world from real data: ``python -m prism_fast.zoo.train``.

Components in order: vae, teacher, judge, second, tiny, unet. Each resumes from its checkpoint in the work folder, and
is skipped once it is done; ``zoo.json`` beside the weights records configuration, metrics and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import cache_dir, content_hash, environment, replacing, resolve_device
from prism_fast.errors import UserError
from prism_fast.zoo.autoencoders import train_tiny, train_vae
from prism_fast.zoo.classifiers import train_classifier
from prism_fast.zoo.config import ZooConfig
from prism_fast.zoo.generator import train_unet
from prism_fast.zoo.splits import PATH as SPLITS
from prism_fast.zoo.splits import write_splits

FOLDER = Path(__file__).parent / "fashion"

log = logging.getLogger(__name__)

Train = Callable[[ZooConfig, Path, Path, torch.device], dict[str, Any]]

COMPONENTS: dict[str, Train] = {
    "vae": train_vae,
    "teacher": partial(train_classifier, "teacher"),
    "judge": partial(train_classifier, "judge"),
    "second": partial(train_classifier, "second"),
    "tiny": train_tiny,
    "unet": train_unet,
}

WEIGHTS = {
    "vae": "pipeline/vae/diffusion_pytorch_model.safetensors",
    "teacher": "teacher/model.safetensors",
    "judge": "judge/model.safetensors",
    "second": "second/model.safetensors",
    "tiny": "pipeline/vae_tiny/diffusion_pytorch_model.safetensors",
    "unet": "pipeline/unet/diffusion_pytorch_model.safetensors",
}


def main(arguments: list[str] | None = None) -> None:
    """Trains the chosen components into the chosen folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("components", nargs="*", default=list(COMPONENTS), help=f"of {', '.join(COMPONENTS)}")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, default=None, help="checkpoints and cached latents")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; the committed weights are a CPU's")
    options = parser.parse_args(arguments)
    unknown = set(options.components) - set(COMPONENTS)
    if unknown:
        parser.error(f"unknown component {', '.join(sorted(unknown))} (known: {', '.join(COMPONENTS)})")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        device = resolve_device(options.device)
        if not SPLITS.exists():
            write_splits()
        train(options.components, options.out, options.work or cache_dir() / "zoo", device)
    except UserError as error:
        parser.error(str(error))


def train(components: Sequence[str], out: Path, work: Path, device: torch.device) -> None:
    """Trains the components that are not done yet, into ``out``; their checkpoints lie in ``work``."""
    config = ZooConfig()
    for name in components:
        identity = config.identity(name, out)
        if finished(out, name, identity):
            log.info("%s is done", name)
            continue
        # A folder of its own for each identity: neither checkpoints nor cached latents of another one are met.
        metrics = COMPONENTS[name](config, out, work / content_hash(identity), device)
        record(out, name, identity, metrics, device)


def finished(folder: Path, name: str, identity: dict[str, Any]) -> bool:
    """Whether the weights in ``folder`` are this component's under this configuration."""
    path = folder / "zoo.json"
    known = json.loads(path.read_text())["components"] if path.exists() else {}
    return name in known and known[name]["config"] == identity and (folder / WEIGHTS[name]).exists()


def record(folder: Path, name: str, identity: dict[str, Any], metrics: dict[str, Any], device: torch.device) -> None:
    """Adds one component's configuration and metrics to ``zoo.json``, and the hashes by which weights are frozen."""
    path = folder / "zoo.json"
    known = json.loads(path.read_text()) if path.exists() else {"components": {}}
    known["components"][name] = {
        "config": identity,
        "environment": environment(device, "float32"),
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
    }
    known["sha256"] = {
        str(weights.relative_to(folder)): hashlib.sha256(weights.read_bytes()).hexdigest()
        for weights in sorted(folder.rglob("*.safetensors"))
    }
    with replacing(path) as staged:
        staged.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
