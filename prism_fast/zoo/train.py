"""Retrains the built-in world from real data: ``python -m prism_fast.zoo.train``.

Components in order: vae, teacher, judge, tiny, unet. Each resumes from its checkpoint in the work folder, and is
skipped once it is done; ``zoo.json`` beside the weights records configuration, metrics and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import cache_dir, canonical, content_hash, environment
from prism_fast.zoo.autoencoders import train_tiny, train_vae
from prism_fast.zoo.classifiers import train_classifier
from prism_fast.zoo.config import ZooConfig
from prism_fast.zoo.generator import train_unet
from prism_fast.zoo.splits import PATH as SPLITS
from prism_fast.zoo.splits import write_splits

FOLDER = Path(__file__).parent / "fashion"

Train = Callable[[ZooConfig, Path, Path], dict[str, Any]]

COMPONENTS: dict[str, Train] = {
    "vae": train_vae,
    "teacher": partial(train_classifier, "teacher"),
    "judge": partial(train_classifier, "judge"),
    "tiny": train_tiny,
    "unet": train_unet,
}


def main(arguments: list[str] | None = None) -> None:
    """Trains the chosen components into the chosen folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("components", nargs="*", default=list(COMPONENTS), help=f"of {', '.join(COMPONENTS)}")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, default=None, help="checkpoints and cached latents")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(arguments)
    unknown = set(options.components) - set(COMPONENTS)
    if unknown:
        parser.error(f"unknown component {', '.join(sorted(unknown))} (known: {', '.join(COMPONENTS)})")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    if not SPLITS.exists():
        write_splits()
    config = ZooConfig()
    work = options.work or cache_dir() / "zoo" / content_hash(config)
    for name in options.components:
        metrics = COMPONENTS[name](config, options.out, work)
        record(options.out, name, config, metrics)


def record(folder: Path, name: str, config: ZooConfig, metrics: dict[str, Any]) -> None:
    """Adds one component's metrics to ``zoo.json``, and the hashes by which all weights are frozen."""
    path = folder / "zoo.json"
    known = json.loads(path.read_text()) if path.exists() else {"components": {}}
    known["config"] = canonical(config)
    known["environment"] = environment(torch.device("cpu"), "float32")
    known["sha256"] = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }
    known["components"][name] = {key: round(value, 5) for key, value in metrics.items()}
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
