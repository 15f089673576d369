"""The simulation at scale, small: the machinery keeps up with a fast sampler, without torch, in flat memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.scale import simulate, text
from prism_fast.synthesis.tar import scan_tar

GOAL = 2000.0
"""Images a second."""

FLAT_BYTES = 24 * 2**20


def test_a_worker_needs_no_torch(tmp_path: Path) -> None:
    """Nor do plan, publication and statistics."""
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from bench.simulated import Simulation\n"
        "from prism_fast.progress import PlainLines\n"
        "from prism_fast.sampling.config import SamplerConfig\n"
        "from prism_fast.synthesis.config import SynthesisConfig\n"
        "from prism_fast.synthesis.interruption import StopRequest\n"
        "folder = Path(sys.argv[1])\n"
        "(folder / 'classes.json').write_text(json.dumps(['coat', 'shoe']))\n"
        "config = SynthesisConfig(vocabulary=str(folder / 'classes.json'), images=20, shard_size=10,\n"
        "    sampler=SamplerConfig(compute_batch=4))\n"
        "made = Simulation(config=config, out=folder, log=folder, images_per_s=1e6)\n"
        "worker = made(StopRequest(), PlainLines(sys.stderr, 20, 'images', ''))\n"
        "assert [worker.make(shard)['images'] for shard in (0, 1)] == [10, 10]\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(scan_tar(tmp_path / "shard-000001.tar")) == 50


@pytest.mark.slow
def test_it_keeps_up_with_two_thousand_images_a_second(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    found = simulate(20_000, 1000, 8, 1.5 * GOAL, 500, 50, tmp_path)
    print(text(found))
    assert found["images_per_s"] >= GOAL, f"on {os.cpu_count()} cores, load {os.getloadavg()}"
    assert not found["torch_in_actors"]
    for memory in found["memory"].values():
        assert memory["last"] - memory["settled"] < FLAT_BYTES
