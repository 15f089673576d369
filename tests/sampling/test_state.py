"""What counts as a change of a network, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prism_fast.sampling.state import state_of, text_state
from tests.tiny import tiny_pipeline, tiny_xl_pipeline


class _Processor:
    def __init__(self) -> None:
        self.rank = 4


def _network() -> Any:
    made = nn.Sequential(nn.Conv2d(3, 70, 3), nn.BatchNorm2d(70), nn.Linear(9, 5)).eval().requires_grad_(False)
    made[0].processor = _Processor()  # type: ignore[assignment]
    made[2].scaling = {"style": 1.0}  # type: ignore[assignment]
    made[2].merged_adapters = []  # type: ignore[assignment]
    return made


def _swap(network: Any) -> None:
    network[2].weight.data = network[2].weight.data.clone()


CHANGES: dict[str, Callable[[Any], object]] = {
    "an adapter's scale": lambda n: n[2].scaling.update(style=0.5),
    "an adapter merged": lambda n: n[2].merged_adapters.append("style"),
    "adapters switched off": lambda n: setattr(n[2], "_disable_adapters", True),
    "a setting": lambda n: setattr(n[1], "s1", 0.9),
    "a processor": lambda n: setattr(n[0], "processor", object.__new__(type("Other", (_Processor,), {}))),
    "a processor's setting": lambda n: setattr(n[0].processor, "rank", 8),
    "its mode": lambda n: n.train(),
    "another module": lambda n: n.__setitem__(1, nn.Identity()),
    "a write": lambda n: n[0].weight.mul_(2),
    "a weight in another place": _swap,
}
WRITES: dict[str, Callable[[Any], object]] = {
    "all": lambda n: n[0].weight.data.mul_(1.0001),
    "signs": lambda n: n[0].weight.data.neg_(),
    "order": lambda n: n[2].weight.data.copy_(n[2].weight.flip(0)),
    "one row": lambda n: n[0].weight.data[7].copy_(n[0].weight[8]),
    "a buffer": lambda n: n[1].running_mean.data.add_(1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_shows(what: str) -> None:
    network = _network()
    before = state_of(network, contents=False)
    assert state_of(network, contents=False) == before
    CHANGES[what](network)
    assert state_of(network, contents=False) != before


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", WRITES)
def test_a_write_through_data_shows_in_the_contents(what: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    network = _network().to(dtype=dtype, memory_format=layout)
    place, inside = state_of(network, contents=False), state_of(network, contents=True)
    if what == "all" and dtype == torch.bfloat16:
        network[0].weight.data.mul_(1.01)  # 1.0001 is 1 there
    else:
        WRITES[what](network)
    assert state_of(network, contents=False) == place
    assert state_of(network, contents=True) != inside


def test_what_is_not_a_number_is_no_change() -> None:
    network = _network()
    network[0].weight.fill_(torch.nan)
    assert state_of(network, contents=True) == state_of(network, contents=True)


def test_odd_weights_are_looked_into() -> None:
    network = nn.Module()
    network.register_buffer("counts", torch.arange(3))
    assert state_of(network, contents=True) == state_of(network, contents=True)
    network.register_buffer("nothing", torch.zeros(0))
    network.register_buffer("one", torch.zeros(()))
    network.register_buffer("spread", torch.zeros(1, 1).expand(40, 40))
    before = state_of(network, contents=True)
    network.one.data.add_(1)  # type: ignore[operator,union-attr]
    assert state_of(network, contents=True) != before
    with torch.inference_mode():
        network.register_buffer("unversioned", torch.ones(5))
    assert state_of(network, contents=True) == state_of(network, contents=True)


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
def test_calls_of_a_pipeline_change_nothing(make: Callable[[int], Any]) -> None:
    pipe = make(0)
    networks = pipe.unet, pipe.vae
    before = state_of(*networks, contents=True), text_state(pipe)
    pipe("boot", num_inference_steps=1)
    assert (state_of(*networks, contents=True), text_state(pipe)) == before
