"""Kernels compiled ahead of time for GPUs that are not there, and what the machine code uses.

``ptxas`` and ``cuobjdump`` come with Triton. Cannot share a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100, 120)
INTEGERS = [*((capability, "i32") for capability in CAPABILITIES), (90, "i64"), (90, "1")]
"""(capability, type of the integer arguments): a launch types them by their values."""

POINTERS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int32": "*i32", "int64": "*i64"}


@dataclass(frozen=True, kw_only=True)
class Cubin:
    """What one kernel takes.

    Args:
        registers: of a thread.
        shared_bytes: static, of a block.
        launch_shared_bytes: of a block, asked for at launch and beside the static ones.
        spilled_bytes: of a thread: local memory and stack, where spilled registers go.
        ttir: Triton's intermediate code.
    """

    registers: int
    shared_bytes: int
    launch_shared_bytes: int
    spilled_bytes: int
    ttir: str

    @property
    def narrow_addresses(self) -> list[str]:
        """Lines that add an int32 offset to a tensor of pointers: they end at 2³¹ elements."""
        return [line.strip() for line in self.ttir.splitlines() if re.search(r"tt\.addptr .*tensor<[\dx]+xi32>", line)]


def compile_cubin(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    num_warps: int = 4,
    integers: str = "i32",
    sixteens: Collection[str] = (),
    **further: int,
) -> Cubin:
    """``kernel`` for one compute capability (80 = 8.0).

    Args:
        kernel: a ``triton.jit`` function.
        types: of its arguments in Triton's words ("*fp32", "fp32", "i64"); arguments left out are integers.
            Pointers are taken as aligned to 16 bytes, as torch's allocations are.
        constants: its constexpr arguments.
        capability: of the GPU.
        num_warps: of the launch.
        integers: type of the integers; "1" for the constants that a launch makes of integers that are one.
        sixteens: integer arguments that are multiples of 16, which a launch sees too.
        further: options of the launch, such as num_stages.
    """
    if integers == "1":
        constants = dict.fromkeys(set(kernel.arg_names) - set(types), 1) | dict(constants)
    signature = {name: "constexpr" if name in constants else types.get(name, integers) for name in kernel.arg_names}
    multiples = [name for name, kind in signature.items() if kind.startswith("*") or name in sixteens]
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    source = ASTSource(kernel, signature, dict(constants), aligned)
    options = {"num_warps": num_warps, "enable_fp_fusion": True} | further  # as launches have them
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = _usage(compiled.asm["cubin"])
    return Cubin(**usage, launch_shared_bytes=compiled.metadata.shared, ttir=str(compiled.asm["ttir"]))


def _usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", listing.stdout)}
    return {
        "registers": found["REG"],
        "shared_bytes": found["SHARED"],
        "spilled_bytes": found["STACK"] + found["LOCAL"],
    }
