"""The ONNX Runtime back-end: the exported graph in a session that reads and writes torch's own memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.teachers.asked import Further
from prism_fast.teachers.backend import Runner
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.export import INPUTS, OUTPUTS, Exported, export


def why_unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why this back-end cannot run a network in ``dtype`` on ``device``; None where it can."""
    if dtype == torch.bfloat16:
        return "ONNX Runtime has no convolution in bfloat16: take float16 or float32"
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  the exporter's
    except (ImportError, OSError) as error:
        return f"{error}: pip install 'prism_fast[onnx]'"
    if device.type == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu in place of onnxruntime"
    return None


class OnnxRunner:
    """One exported teacher in a session; see :class:`prism_fast.teachers.backend.Runner`.

    Args:
        exported: the model.
        device: ``cpu`` or a CUDA device.
        provider: ONNX Runtime's name of one; None: the device's own.

    Raises:
        UserError: the provider is not there, or refuses the model.
    """

    def __init__(self, exported: Exported, device: torch.device, provider: str | None = None) -> None:
        import onnxruntime

        self._device = device
        provider = provider or ("CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider")
        known = onnxruntime.get_available_providers()
        if provider not in known:
            raise UserError(f"this ONNX Runtime has no {provider} (it has {', '.join(known)})")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # its threads would go on spinning after a call and keep the cores from torch's
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        own: dict[str, str] = {}
        if provider == "CUDAExecutionProvider":
            own = {"device_id": str(device.index or 0), "use_tf32": "0"}
        try:
            self._session = onnxruntime.InferenceSession(exported.model, options, providers=[(provider, own)])
        except Exception as error:
            raise UserError(f"ONNX Runtime refuses the exported teacher: {str(error).splitlines()[0]}") from error

    def __call__(
        self, images: Tensor, targets: Tensor, temperature: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        results = images.new_empty(len(images)), torch.empty_like(images), torch.empty_like(targets)
        binding: Any = self._session.io_binding()
        for name, tensor in zip(INPUTS, (images, targets, temperature, weights), strict=True):
            tensor = tensor.contiguous()
            binding.bind_input(
                name, self._device.type, self._device.index or 0, np.float32, tuple(tensor.shape), tensor.data_ptr()
            )
        for name, tensor in zip(OUTPUTS, results, strict=True):
            binding.bind_output(
                name, self._device.type, self._device.index or 0, np.float32, tuple(tensor.shape), tensor.data_ptr()
            )
        if self._device.type == "cuda":  # the session has a stream of its own
            torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)  # waits for its end
        return results


def make_runner(teacher: EagerTeacher, size: tuple[int, int], further: Further, provider: str | None = None) -> Runner:
    """Exports the teacher for images of a size and opens a session on its device."""
    dtype = str(teacher.dtype).removeprefix("torch.")
    return OnnxRunner(export(teacher, size, dtype, further), teacher.device, provider)
