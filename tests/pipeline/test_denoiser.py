from __future__ import annotations

from typing import Any

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.pipeline.denoiser import Denoiser
from tests.tiny import tiny_pipeline, tiny_xl_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


def test_cfg_is_its_equation(pipe: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    empty, text = torch.randn(2, 2, 24, 32, generator=generator)
    timestep = torch.tensor(500)
    denoiser = Denoiser(pipe, 3.0)
    unconditional, conditional = denoiser(sample, timestep, empty, None), denoiser(sample, timestep, text, None)
    guided = denoiser(sample, timestep, text, empty)
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"time_cond_proj_dim": 256}, {"addition_embed_type": "text_time"}, {"in_channels": 9}], ids=str
)
def test_other_kinds_of_unet_are_refused(change: dict[str, Any]) -> None:
    pipe = tiny_pipeline(0)
    pipe.unet.register_to_config(**change)
    with pytest.raises(UserError, match="UNet"):
        Denoiser(pipe, 2.0)


@pytest.mark.parametrize("kind", [None, "image", "text"])
def test_an_xl_without_its_conditions_is_refused(kind: str | None) -> None:
    xl = tiny_xl_pipeline(0)
    Denoiser(xl, 2.0)
    xl.unet.register_to_config(addition_embed_type=kind)
    with pytest.raises(UserError, match=f"wants addition_embed_type {kind}"):
        Denoiser(xl, 2.0)
