"""Everything is declared in pyproject.toml, except the native extension ``prism_fast._C``, which is added here.

PRISM_FAST_BUILD chooses it:
    auto  (default) CUDA and C++ where a CUDA toolkit is found, C++ where only torch is. Where torch cannot be imported,
          as in pip's isolated build environments, nothing: the package then works on plain torch and Triton
    none  nothing
    cpu   C++
    cuda  C++ and CUDA
An explicit choice works or raises. Whether this machine has a GPU is never asked: TORCH_CUDA_ARCH_LIST names those to
build for (default: 8.0, 9.0 and 12.0, with PTX of the last for newer ones).
"""

from __future__ import annotations

import glob
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

# Files of the CPU kernels by the end of their name: ATen's vectors for those instructions. The choice is made when
# the operator runs.
VECTOR_FLAGS = {
    "_avx2.cpp": ["-mavx2", "-mfma", "-mf16c", "-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"],
    "_avx512.cpp": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
        *("-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    ],
}
CHOICES = ("auto", "none", "cpu", "cuda")


def cuda_toolkit() -> Path | None:
    """The toolkit's folder: $CUDA_HOME, nvcc's own (a wrapper script's folder holds no headers), or the usual place."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), nvcc and str(Path(nvcc).resolve().parents[1]), "/usr/local/cuda"]
    for folder in (Path(candidate) for candidate in candidates if candidate):
        if (folder / "bin/nvcc").exists() and (folder / "include/cuda_runtime.h").exists():
            return folder
    return None


def vector_flags(source: str) -> list[str]:
    """The flags that this file alone is compiled with."""
    if platform.machine() != "x86_64":
        return []
    return next((flags for end, flags in VECTOR_FLAGS.items() if source.endswith(end)), [])


def object_files(sources: list[str], strip_dir: bool = False, output_dir: str | None = None) -> list[str]:
    """Names as CMake makes them: setuptools' own drop the ending, and logit_energy.cpp is not logit_energy.cu."""
    names = (Path(source).name if strip_dir else source for source in sources)
    return [str(Path(output_dir or "") / f"{name}.o") for name in names]


def resolve(choice: str) -> str:
    """``none``, ``cpu`` or ``cuda``; see the module.

    Raises:
        SystemExit: an explicit choice cannot be built here.
    """
    if choice not in CHOICES:
        raise SystemExit(f"PRISM_FAST_BUILD: expected one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "none":
        return choice
    if importlib.util.find_spec("torch") is None:
        if choice == "auto":
            sys.stderr.write(
                "prism_fast: no torch in the build environment, so no native extension (later: make native)\n"
            )
            return "none"
        raise SystemExit(
            f"PRISM_FAST_BUILD={choice} needs torch here: install it, then build with --no-build-isolation"
        )
    import torch

    if choice == "cpu":
        return choice
    missing = None
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} was built without CUDA"
    elif cuda_toolkit() is None:
        missing = "no CUDA toolkit found (nvcc and its headers; CUDA_HOME names its folder)"
    if missing and choice == "cuda":
        raise SystemExit(f"PRISM_FAST_BUILD=cuda: {missing}")
    if missing:
        sys.stderr.write(f"prism_fast: native extension for the CPU only: {missing}\n")
    return "cpu" if missing else "cuda"


def extension(kind: str) -> dict[str, Any]:
    """setuptools' arguments for the extension: every source of csrc/."""
    if kind == "none":
        return {}
    if kind == "cuda":  # read by cpp_extension when it is imported, and by its compiler flags
        os.environ["CUDA_HOME"] = str(cuda_toolkit())
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;12.0+PTX")
    from torch.utils import cpp_extension

    class Build(cpp_extension.BuildExtension):
        """Adds the flags of single files, for which setuptools has no place."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "use_ninja": False})  # ninja gets one set of flags for all files

        def build_extensions(self) -> None:
            compile_file = self.compiler._compile  # torch's own wrapper ends by calling it

            def compile_with_flags(obj: str, src: str, ext: str, cc: list[str], post: list[str], pp: list[str]) -> None:
                compile_file(obj, src, ext, cc, [*post, *vector_flags(src)], pp)

            self.compiler._compile = compile_with_flags
            self.compiler.object_filenames = object_files
            super().build_extensions()

    build = cpp_extension.CUDAExtension if kind == "cuda" else cpp_extension.CppExtension
    native = build(
        "prism_fast._C",
        sorted(glob.glob("csrc/*.cpp") + (glob.glob("csrc/*.cu") if kind == "cuda" else [])),
        depends=["setup.py", *sorted(glob.glob("csrc/*.h"))],
        extra_compile_args={
            "cxx": ["-O3", "-g0", "-fopenmp", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"],
            "nvcc": ["-O3"],
        },
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [native], "cmdclass": {"build_ext": Build}}


if __name__ == "__main__":  # make and CMake import what is above
    setup(**extension(resolve(os.environ.get("PRISM_FAST_BUILD") or "auto")))
