from __future__ import annotations

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.sampling.noise import draw_noise, random_direction, travel_noise

SHAPE = (4, 8, 8)


def _seeds(seed: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (count,), generator=generator).tolist()


def test_the_steps_are_what_a_diffusers_scheduler_draws_from_the_generators(seed: int) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    noise = draw_noise(_seeds(seed, 3), SHAPE, draws=5)
    for row in range(5):
        drawn = randn_tensor((3, *SHAPE), generator=noise.generators, device=torch.device("cpu"), dtype=torch.float32)
        assert torch.equal(noise.steps[row], drawn)


def test_the_initial_noise_is_what_a_diffusers_pipeline_draws(seed: int) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    seeds = _seeds(seed, 3)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    expected = randn_tensor((3, *SHAPE), generator=generators, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(draw_noise(seeds, SHAPE, draws=0).init, expected)


def test_an_image_has_its_noise_in_any_batch(seed: int) -> None:
    seeds = _seeds(seed, 4)
    together = draw_noise(seeds, SHAPE, draws=3)
    turned = draw_noise(seeds[::-1], SHAPE, draws=7)
    assert torch.equal(together.init, turned.init.flip(0))
    assert torch.equal(together.steps, turned.steps[:3].flip(1))
    for function in (lambda s: travel_noise(s, SHAPE, 4, 1), lambda s: random_direction(s, SHAPE)):
        assert torch.equal(function(seeds)[2], function(seeds[2:3])[0])


def test_streams_are_independent(seed: int) -> None:
    seeds = _seeds(seed, 2)
    noise = draw_noise(seeds, SHAPE, draws=2)
    streams = [noise.init, *noise.steps, random_direction(seeds, SHAPE)]
    streams += [travel_noise(seeds, SHAPE, step, repeat) for step in (0, 1, 12) for repeat in (1, 2)]
    for i, a in enumerate(streams):
        assert a.dtype == torch.float32 and a.shape == (2, *SHAPE)
        for b in streams[:i]:
            # 512 numbers each: a correlation of 0.3 is seven standard deviations
            assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.3


def test_keyed_noise_is_frozen() -> None:
    """Images of published shards depend on these numbers."""
    assert draw_noise([7], (1, 1, 2), draws=1).init.flatten().tolist() == pytest.approx([-0.1468, 0.7861], abs=1e-4)
    assert random_direction([7], (1, 1, 2)).flatten().tolist() == pytest.approx([0.6477, -1.8885], abs=1e-4)
    assert travel_noise([7], (1, 1, 2), 3, 1).flatten().tolist() == pytest.approx([0.5030, -0.1219], abs=1e-4)


def test_no_draws_no_rows() -> None:
    assert draw_noise([1, 2], SHAPE, draws=0).steps.shape == (0, 2, *SHAPE)


@pytest.mark.parametrize("bad", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(bad: int) -> None:
    with pytest.raises(UserError, match=str(bad)):
        draw_noise([0, bad], SHAPE, draws=0)
