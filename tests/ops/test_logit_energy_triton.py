"""The Triton kernel of logit_energy without a GPU: interpreted against fp64, and compiled to machine code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CAPABILITIES = (80, 90, 100, 120)
POINTERS = {"logits": "", "cotangent": "", "targets": "*i64", "stats": "*fp32", "indices": "*i64"}
POINTERS |= {"probabilities": "*fp32", "remaining": "*fp32"}


def test_kernel_under_the_interpreter(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.interpreted_logit_energy", str(seed)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def usage_of(dtype: str, block: int, warps: int, capability: int) -> dict[str, int]:
    """Registers and bytes of stack, local and shared memory of one compiled variant."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from prism_fast.kernels.logit_energy import _logit_energy_kernel as kernel

    signature = {}
    for name in kernel.arg_names:
        kind = POINTERS.get(name, "constexpr" if name == "BLOCK" else "i64" if name.isupper() else "fp32")
        signature[name] = kind or f"*{dtype}"
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    aligned[(kernel.arg_names.index("CLASSES"),)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {"BLOCK": block}, aligned)
    options = {"num_warps": warps, "enable_fp_fusion": True}  # as a launch has them
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listing = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", listing.stdout)}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter has replaced the compiler")
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("dtype", "block", "warps"), [("fp32", 1024, 4), ("fp16", 4096, 8), ("bf16", 32, 1)])
def test_compiles_without_spills(dtype: str, block: int, warps: int, capability: int) -> None:
    usage = usage_of(dtype, block, warps, capability)
    assert usage["STACK"] == usage["LOCAL"] == 0, usage  # where spilled registers go
    assert usage["REG"] <= 128 and usage["SHARED"] <= 1024, usage


def test_variants_are_those_that_the_launcher_takes() -> None:
    from prism_fast.kernels import logit_energy as launcher

    sizes = {classes: launcher.launch_sizes(classes) for classes in (2, 10, 1000, 21841)}
    assert sizes == {2: (32, 1), 10: (32, 1), 1000: (1024, 4), 21841: (4096, 8)}
