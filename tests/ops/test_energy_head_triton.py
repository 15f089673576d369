"""energy_head's Triton kernels without a GPU: what is launched and allocated, and what the machine code uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prism_fast.kernels import energy_head as kernels
from tests.ops.accuracy import DTYPES
from tests.ops.cubins import CAPABILITIES, INTEGERS, POINTERS, compile_cubin
from tests.ops.properties import given, settings, st

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""What one block can have."""


class Launches:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: self.launches.append((grid, arguments, constants))


class Allocations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        assert "aten.empty" in str(function) or "aten.unbind" in str(function), f"{function} in the launcher"
        self.shapes += [t.shape for t in (result if isinstance(result, tuple | list) else [result])]
        return result


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Launches, Launches]]:
    partials, combine = Launches(), Launches()
    monkeypatch.setattr(kernels, "_energy_head_partials_kernel", partials)
    monkeypatch.setattr(kernels, "_energy_head_combine_kernel", combine)
    return partials, combine


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_no_logits_in_memory(launches: tuple[Launches, Launches], temperature: float) -> None:
    """What is allocated does not grow with K, and no buffer has the size of [B, K]."""
    batch, width, found = 300, 1280, []
    for classes in (21_841, 1_000_003, 50_000_000):
        features = torch.empty(batch, width, dtype=torch.bfloat16, device="meta")
        weight = torch.empty(classes, width, dtype=torch.bfloat16, device="meta")
        with Allocations() as allocations:
            kernels.energy_head_triton(features, weight, None, features, temperature, 1.0, 1.0)
        assert all(classes not in shape and shape.numel() != batch * classes for shape in allocations.shapes)
        found.append(sum(shape.numel() for shape in allocations.shapes))
    assert found[0] <= found[1] == found[2] < batch * 50_000_000 / 100
    assert [len(kernel.launches) for kernel in launches] == [3 if temperature == 1 else 6] * 2


@settings(deadline=None, max_examples=200)
@given(
    batch=st.integers(1, 5000), classes=st.integers(2, 10**6), width=st.integers(1, 9000), dtype=st.sampled_from(DTYPES)
)
def test_launches_cover_everything_once(batch: int, classes: int, width: int, dtype: torch.dtype) -> None:
    partials, combine = Launches(), Launches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_energy_head_partials_kernel", partials)
        patch.setattr(kernels, "_energy_head_combine_kernel", combine)
        features = torch.empty(batch, width, dtype=dtype, device="meta")
        weight = torch.empty(classes, width, dtype=dtype, device="meta")
        kernels.energy_head_triton(features, weight, None, features, 1.0, 1.0, 1.0)
    ((blocks, splits, slabs), arguments, constants) = partials.launches[0]
    split, slab = arguments[12], constants["CHUNKS"] * constants["BLOCK_D"]
    assert split % constants["BLOCK_K"] == 0
    for count, size, whole in ((blocks, constants["BLOCK_B"], batch), (splits, split, classes), (slabs, slab, width)):
        assert (count - 1) * size < whole <= count * size
    assert splits <= max(1, kernels.PROGRAMS // (blocks * slabs)) and max(splits, slabs) < 2**16
    variant = constants["BLOCK_B"], constants["BLOCK_K"], constants["BLOCK_D"]
    assert any(constants["CHUNKS"] <= v[-1] for v in VARIANTS if (v[0] == dtype, *v[2:5]) == (True, *variant))
    assert combine.launches[0][2]["SPLITS"] >= splits


# dtype, aligned, BLOCK_B, BLOCK_K, BLOCK_D and the most CHUNKS of a launch
FP32 = [(torch.float32, aligned, 16, 16, 64, 5) for aligned in (True, False)]
HALF = [
    (dtype, *rest)
    for dtype in DTYPES[1:]
    for rest in ((True, 16, 32, 128, 10), (True, 32, 32, 64, 10), (False, 32, 32, 64, 8))
]
VARIANTS = FP32 + HALF
TYPES = {"targets": "*i64", "temperature": "fp32", "free_weight": "fp32", "class_weight": "fp32"}
TYPES |= dict.fromkeys(("largest", "exps", "target_logits", "sums", "energy", "gradient"), "*fp32")
Variant = tuple[torch.dtype, bool, int, int, int, int]


def check_cubin(variant: Variant, chunks: int, capability: int, integers: str) -> None:
    dtype, aligned, block_b, block_k, block_d, _ = variant
    pointers = dict.fromkeys(("features", "weight", "bias"), POINTERS[str(dtype).removeprefix("torch.")])
    cubin = compile_cubin(
        kernels._energy_head_partials_kernel,
        TYPES | pointers,
        {"BIAS": True, "BLOCK_B": block_b, "BLOCK_K": block_k, "BLOCK_D": block_d, "CHUNKS": chunks},
        capability,
        kernels.NUM_WARPS,
        integers,
        ("width", "features_b", "weight_k") if aligned else (),
        num_stages=kernels.NUM_STAGES,
        maxnreg=kernels.MAX_REGISTERS,
    )
    accumulators = chunks * block_b * block_d // (32 * kernels.NUM_WARPS)
    assert cubin.spilled_bytes == 0
    assert accumulators < cubin.registers <= 255 and cubin.registers * 32 * kernels.NUM_WARPS <= 2**16
    assert 0 < cubin.launch_shared_bytes <= 16 << 10 < SHARED_BYTES[capability] - cubin.shared_bytes
    assert not cubin.narrow_addresses and "atomic" not in cubin.ttir and "tf32" not in cubin.ttir


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("variant", [FP32[0], *HALF[-3:]])
def test_cubin(variant: Variant, capability: int) -> None:
    check_cubin(variant, variant[-1], capability, "i32")


def test_cubin_of_other_integers() -> None:
    check_cubin(HALF[-1], 1, 90, "1")
    check_cubin(HALF[-3], 10, 90, "i64")


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "integers"), INTEGERS[:-1])  # no integer of a wide matrix is one
@pytest.mark.parametrize("variant", VARIANTS)
def test_cubin_of_every_width(variant: Variant, capability: int, integers: str) -> None:
    for chunks in range(1, variant[-1] + 1):
        check_cubin(variant, chunks, capability, integers)


@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize("splits", [1, 128])
def test_cubin_of_combine(splits: int, capability: int, integers: str) -> None:
    cubin = compile_cubin(
        kernels._energy_head_combine_kernel,
        TYPES | {"weight": "*bf16"},
        {"ADD": True, "SPLITS": splits, "BLOCK": kernels.BLOCK_COMBINED},
        capability,
        kernels.NUM_WARPS_COMBINED,
        integers,
    )
    assert cubin.spilled_bytes == 0 and cubin.registers <= 128 and cubin.launch_shared_bytes <= 1024
    assert not cubin.narrow_addresses and "atomic" not in cubin.ttir
