from __future__ import annotations

import logging
import sys

import pytest
import torch

from prism_fast.engine.choice import choose_engine
from prism_fast.engine.processes import Processes
from prism_fast.errors import UserError
from prism_fast.synthesis.work import in_turn


def test_the_cpu_has_one_process_or_as_many_as_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_engine("local", "cpu", None, None) is choose_engine("local", "cpu", 1, None) is in_turn
    with caplog.at_level(logging.WARNING, "prism_fast"):
        assert choose_engine("local", "cpu", 10_000, None) == Processes(workers=10_000)
    assert "OMP_NUM_THREADS=1" in caplog.text


def test_every_visible_gpu_has_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_engine("local", "auto", None, None) == Processes(workers=3, gpus=("0", "1", "2"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6,7")
    assert choose_engine("local", "cuda", 2, None) == Processes(workers=2, gpus=("4", "6"))
    assert choose_engine("local", "cuda", 1, None) is choose_engine("local", "cuda:2", None, None) is in_turn
    with pytest.raises(UserError, match="--workers 4, but 3 GPUs are visible"):
        choose_engine("local", "auto", 4, None)
    with pytest.raises(UserError, match="one GPU has one worker; use --device cuda"):
        choose_engine("local", "cuda:2", 2, None)


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="local, ray, not 'slurm'"):
        choose_engine("slurm", "cpu", None, None)
    with pytest.raises(UserError, match="--workers is 0"):
        choose_engine("ray", "cpu", 0, None)
    with pytest.raises(UserError, match="add --engine ray"):
        choose_engine("local", "cpu", None, "auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "prism_fast.engine.ray", raising=False)
    with pytest.raises(UserError, match=r"pip install 'prism_fast\[ray\]'"):
        choose_engine("ray", "cpu", None, None)
