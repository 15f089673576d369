"""All figures of two sets of features, on CUDA beside the CPU."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.gpu
def test_a_gpu_finds_the_same_figures(seed: int) -> None:
    """What a CPU finds, but for rounding; verdicts of neighbours that it may turn are counted."""
    pytest.importorskip("torch_fidelity")
    from prism_fast.metrics.comparison import Settings, distance_figures, overlap_figures

    generator = torch.Generator().manual_seed(seed)
    made, real = (torch.randn(500, 24, generator=generator) + shift for shift in (0.3, 0.0))
    found = {}
    for device in ("cpu", "cuda"):
        shared = Settings(extractor="judge", reference="test", resamples=20, set_resamples=3, seed=seed, device=device)
        found[device] = [
            figure for figures in (overlap_figures, distance_figures) for figure in figures(made, real, shared, "made")
        ]
    for figure, other in zip(found["cpu"], found["cuda"], strict=True):
        assert figure.name == other.name
        ties = (figure.ties or 0) + (other.ties or 0)
        assert other.value == pytest.approx(figure.value, rel=1e-6, abs=1e-9 + ties / figure.count), figure.name
        assert (other.interval is None) == (figure.interval is None)
