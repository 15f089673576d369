"""Back-ends on a CUDA device, against fp64 on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prism_fast.energy.terms import guidance_energy
from prism_fast.errors import UserError
from prism_fast.teachers import tensorrt
from prism_fast.teachers.architectures import random_teacher
from prism_fast.teachers.check import check_backend
from prism_fast.teachers.choice import choose, make_backend, why_not
from prism_fast.teachers.engines import EngineCache
from prism_fast.teachers.truth import truth

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["eager", "compiled", "onnx", "tensorrt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_usable_backend_is_near_fp64(backend: str, dtype: str, tmp_path: Path) -> None:
    teacher = random_teacher("resnet18", "cuda", getattr(torch, dtype))
    reason = why_not(teacher, backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert check_backend(teacher, backend, truth(teacher, 8, dtype=dtype), batch=8).passed


@pytest.mark.parametrize("backend", ["compiled", "tensorrt"])
def test_a_capturable_backend_replays_from_a_graph(backend: str, tmp_path: Path) -> None:
    teacher = random_teacher("resnet18", "cuda")
    reason = why_not(teacher, backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    made = make_backend(teacher, backend, batch=4, cache=EngineCache(tmp_path))
    term = guidance_energy()
    images, targets = torch.rand(4, 3, 224, 224, device="cuda"), torch.arange(4, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            made.energy_and_grad(images, targets, term)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = made.energy_and_grad(images, targets, term)
    images.copy_(torch.rand_like(images))
    graph.replay()
    torch.cuda.synchronize()
    direct = made.energy_and_grad(images, targets, term)
    assert torch.allclose(replayed.energy, direct.energy, rtol=1e-4, atol=1e-4)
    assert torch.nn.functional.cosine_similarity(replayed.grad.flatten(1), direct.grad.flatten(1)).min() > 0.999


def test_a_gpu_without_engines_is_refused_and_auto_moves_on() -> None:
    capability = torch.cuda.get_device_capability()
    try:
        library = tensorrt.load_library()
    except UserError as error:
        pytest.skip(str(error))
    if tensorrt.refusal(library, capability) is None:
        pytest.skip(f"{library.flavour} has engines for compute capability {capability}")
    teacher = random_teacher("resnet18", "cuda")
    with pytest.raises(UserError, match="does not build for compute capability"):
        choose(teacher, "tensorrt")
    assert choose(teacher, "auto") == "compiled"
