from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.kernels import guided_step as kernels
from prism_fast.ops.guided_step import guided_step, guided_step_cuda, guided_step_ref
from prism_fast.ops.image_norms import image_norms_ref
from prism_fast.ops.step_table import Column
from tests.ops.accuracy import DTYPES, LAYOUTS, SHAPES, assert_as_accurate, far_apart, laid_out
from tests.ops.cubins import INTEGERS, POINTERS, compile_cubin
from tests.ops.properties import given, settings, st

ROWS, STEP, DEPTH = 7, 5, 4
GUIDANCE = ("gradient", "rms", "energy", "tau", "delta")
Arguments = dict[str, Any]


def _arguments(
    shape: tuple[int, ...] = (3, 4, 7, 5),
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    cfg: bool = True,
    without: tuple[str, ...] = (),
    depth: int = DEPTH,
) -> Arguments:
    """Everything that a step can take; what is left out has coefficients of zero in the table."""
    batch, *rest = shape
    gradient = laid_out(torch.randn(shape).to(dtype), layout)
    table = torch.randn(ROWS, len(Column))
    table[:, Column.HISTORY_1 + depth : Column.HISTORY_1 + 4] = 0.0
    if "noise" in without:
        table[:, Column.NOISE] = 0.0
    # The samples are buffers of the loop: dense
    dense = "channels_last" if layout == "channels_last" else "nchw"
    arguments = {
        "sample": laid_out(torch.randn(shape), dense),
        "prediction": laid_out(torch.randn((1 + cfg) * batch, *rest).to(dtype), layout),
        "table": table,
        "step": torch.tensor(STEP),
        "history": torch.randn(depth, *shape),
        "cfg_scale": 2.5,
        "gradient": gradient,
        "rms": image_norms_ref(gradient.float()),
        "energy": torch.randn(batch),
        "tau": torch.randn(batch),
        "delta": torch.rand(batch) + 0.3,
        "noise": torch.randn(ROWS, *shape),
    }
    return {name: None if name in without else value for name, value in arguments.items()}


def _precise(arguments: Arguments) -> Arguments:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def _run(step: Any, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Sample and history after ``step``; the arguments stay as they are, layouts included."""
    copies = dict(arguments)
    for name in ("sample", "history"):
        copies[name] = arguments[name].clone(memory_format=torch.preserve_format)
    assert step(**copies) is None
    return copies["sample"], copies["history"]


def _compare(step: Any, arguments: Arguments) -> None:
    sample, history = _run(step, arguments)
    (following, entry), (exact, exact_entry) = guided_step_ref(**arguments), guided_step_ref(**_precise(arguments))
    assert_as_accurate(sample, following, exact)
    if depth := len(history):
        slot = STEP % depth
        assert_as_accurate(history[slot], entry, exact_entry)
        others = [k for k in range(depth) if k != slot]
        assert torch.equal(history[others], arguments["history"][others])


def test_the_equation() -> None:
    """Written out for one element, in Python's own numbers."""
    arguments = _precise(_arguments((1, 1, 1, 1)))
    row = dict(zip(Column, arguments["table"][STEP].tolist(), strict=True))
    s, g, rms, energy, tau, delta = (
        arguments[name].item() for name in ("sample", "gradient", "rms", "energy", "tau", "delta")
    )
    without, text = arguments["prediction"].flatten().tolist()
    gate = 1 / (1 + torch.tensor((tau - energy) / delta).exp().item())
    change = -row[Column.STRENGTH] * gate * g / (rms + 1e-12)
    m = without + 2.5 * (text - without) + row[Column.SHIFT] * change
    h = arguments["history"].flatten().tolist()  # of rows 4, 1, 2, 3: row k is in slot k mod 4
    expected = (
        row[Column.NEXT_SAMPLE] * s + row[Column.NEXT_PREDICTION] * m
        + row[Column.HISTORY_1] * h[0] + row[Column.HISTORY_2] * h[3] + row[Column.HISTORY_3] * h[2]
        + row[Column.HISTORY_4] * h[1] + row[Column.NOISE] * arguments["noise"][STEP].item()
    )  # fmt: skip
    sample, history = _run(guided_step, arguments)
    assert sample.item() == pytest.approx(expected, rel=1e-6)
    assert history[1].item() == pytest.approx(row[Column.ENTRY_SAMPLE] * s + row[Column.ENTRY_PREDICTION] * m, rel=1e-6)


def _drop(arguments: Arguments, shift: int) -> None:
    """Four images with no usable gradient."""
    arguments["gradient"][shift, 0, 1, 2] = torch.nan
    arguments["gradient"][shift + 1, 0, 1, 2] = torch.inf
    arguments["gradient"][shift + 2] = 0.0
    arguments["energy"][shift + 3] = torch.inf
    arguments["rms"] = image_norms_ref(arguments["gradient"])


def _check_dropped(step: Any) -> None:
    """Dropped images move exactly as unguided ones, and the others do not notice."""
    arguments = _arguments((6, 4, 3, 5))
    guided, guided_history = _run(step, arguments)
    free, free_history = _run(step, arguments | dict.fromkeys(GUIDANCE))
    _drop(arguments, 1)
    got, history = _run(step, arguments)
    assert torch.equal(got[1:5], free[1:5]) and torch.equal(history[:, 1:5], free_history[:, 1:5])
    assert torch.equal(got[[0, 5]], guided[[0, 5]]) and torch.equal(history[:, [0, 5]], guided_history[:, [0, 5]])
    assert not torch.equal(guided[1:5], free[1:5])


def test_what_has_no_gradient_is_left_unguided() -> None:
    _check_dropped(guided_step)


def test_zero_strength_is_no_guidance() -> None:
    arguments = _arguments()
    arguments["table"][:, Column.STRENGTH] = 0.0
    assert torch.equal(_run(guided_step, arguments)[0], _run(guided_step, arguments | dict.fromkeys(GUIDANCE))[0])


VARIANTS: list[Arguments] = [
    {},
    {"cfg": False},
    {"without": GUIDANCE},
    {"without": (*GUIDANCE, "noise"), "depth": 0},
    {"without": ("tau", "delta"), "depth": 1},
    {"without": ("energy", "tau", "delta", "noise")},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_opcheck(variant: Arguments) -> None:
    torch.library.opcheck(guided_step, (), _arguments((2, 4, 3, 5), **variant))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole(backend: str) -> None:
    """What is written in place arrives, between operations that read before and after."""
    arguments = _arguments((2, 4, 3, 5), torch.bfloat16)

    def step(sample: Tensor, history: Tensor, **others: Any) -> Tensor:
        before = sample * 2
        guided_step(sample, history=history, **others)
        return before + sample + history.sum(0)

    expected_sample, expected_history = _run(guided_step, arguments)
    copies = arguments | {name: arguments[name].clone() for name in ("sample", "history")}
    got = torch.compile(step, fullgraph=True, backend=backend)(**copies)
    assert torch.equal(copies["sample"], expected_sample) and torch.equal(copies["history"], expected_history)
    torch.testing.assert_close(got, 2 * arguments["sample"] + expected_sample + expected_history.sum(0))


def test_no_images() -> None:
    assert _run(guided_step, _arguments((0, 4, 3, 5)))[0].shape == (0, 4, 3, 5)


SCALARS = torch.zeros(3)
WRONG: list[tuple[Arguments, str]] = [
    ({"sample": torch.zeros(3, 4, 7, 5).half()}, "sample: expected float32 or float64, got float16"),
    ({"prediction": torch.zeros(6, 4, 7, 6)}, r"prediction: expected shape \(6, 4, 7, 5\)"),
    (
        {"history": torch.zeros(2, 3, 4, 7, 6)},
        r"history: expected shape \(n, 3, 4, 7, 5\), got",
    ),
    ({"history": torch.zeros(5, 3, 4, 7, 5)}, "history: expected at most 4 slots, got 5"),
    ({"history": torch.zeros(4, 3, 4, 7, 5).double()}, "history: expected float32, got float64"),
    ({"noise": torch.zeros(3, 4, 7, 5)}, r"noise: expected shape \(n, 3, 4, 7, 5\), got shape \(3, 4, 7, 5\)"),
    ({"gradient": torch.zeros(3, 4, 7, 6)}, r"gradient: expected shape \(3, 4, 7, 5\), got shape \(3, 4, 7, 6\)"),
    ({"gradient": torch.zeros(3, 4, 7, 5, device="meta")}, "gradient: expected device cpu, got device meta"),
    ({"rms": None}, "rms: expected a tensor exactly where there is a gradient, got None"),
    ({"rms": torch.zeros(3, 1)}, r"rms: expected shape \(3,\), got shape \(3, 1\)"),
    ({"gradient": None, "rms": None}, "energy: expected None without a gradient"),
    ({"delta": None}, "delta: expected a tensor exactly where there is tau, got None"),
    ({"energy": None}, "tau: expected None without an energy"),
    ({"tau": SCALARS.long()}, "tau: expected float32 or float64, got int64"),
    ({"table": torch.zeros(5, 13)}, r"table: expected shape \(rows, 14\)"),
    ({"step": torch.tensor([1, 2])}, "step: expected one int64"),
    ({"noise": None}, "noise: expected a tensor: row 5 draws noise, got None"),
    ({"history": torch.zeros(1, 3, 4, 7, 5)}, "history: expected at least 2 slots for row 5, got 1"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[m for _, m in WRONG])
def test_refusals(wrong: Arguments, message: str) -> None:
    arguments = _arguments() | wrong
    before = arguments["sample"].clone()
    with pytest.raises(ValueError, match=message):
        guided_step(**arguments)
    assert torch.equal(arguments["sample"], before)


@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize(
    ("dtype", "constants"),
    [
        ("float32", {"GUIDED": True, "ENERGY": True, "GATED": True, "NOISY": True, "DEPTH": 4}),
        ("bfloat16", {"GUIDED": True, "ENERGY": True, "GATED": True, "NOISY": False, "DEPTH": 1}),
        ("float16", {"GUIDED": False, "ENERGY": False, "GATED": False, "NOISY": False, "DEPTH": 0}),
    ],
    ids=["everything", "dpmsolver++", "unguided"],
)
def test_cubin(dtype: str, constants: dict[str, Any], capability: int, integers: str) -> None:
    fp32 = ("sample", "table", "rms", "energy", "tau", "delta", "noise", "history")
    cubin = compile_cubin(
        kernels._guided_step_kernel,
        dict.fromkeys(fp32, "*fp32")
        | dict.fromkeys(("prediction", "gradient"), POINTERS[dtype])
        | {"step": "*i64", "cfg_scale": "fp32", "floor": "fp32"},
        constants | {"CFG": True, "CHANNELS_LAST": False, "BLOCK": kernels.BLOCK},
        capability,
        kernels.NUM_WARPS,
        integers,
    )
    assert cubin.spilled_bytes == 0 and cubin.shared_bytes <= 1024 and cubin.registers <= 128
    assert not cubin.narrow_addresses


def _on_gpu(arguments: Arguments) -> Arguments:
    return {name: value.cuda() if isinstance(value, Tensor) else value for name, value in arguments.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_on_a_gpu(variant: Arguments, dtype: torch.dtype, layout: str) -> None:
    _compare(guided_step, _on_gpu(_arguments((3, 4, 61, 67), dtype, layout, **variant)))


@pytest.mark.gpu
def test_a_captured_step_replays_every_row() -> None:
    """The step counter is a device tensor: one graph is the whole trajectory."""
    arguments = _on_gpu(_arguments())
    buffers = arguments | {name: arguments[name].clone() for name in ("sample", "history", "step")}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles before the capture
        guided_step(**buffers)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        guided_step(**buffers)
        buffers["step"].add_(1)
    for name, start in (("sample", arguments["sample"]), ("history", arguments["history"]), ("step", 0)):
        buffers[name].copy_(torch.as_tensor(start))
    for row in range(ROWS):
        graph.replay()
        guided_step(**arguments | {"step": torch.tensor(row, device="cuda")})
    assert torch.equal(buffers["sample"], arguments["sample"]) and torch.equal(buffers["history"], arguments["history"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_interpreted_kernel(variant: Arguments, dtype: torch.dtype, layout: str) -> None:
    _compare(guided_step_cuda, _arguments((3, 4, 11, 13), dtype, layout, **variant))


@settings(deadline=None, max_examples=15)
@given(shape=SHAPES, cfg=st.booleans(), depth=st.integers(0, 4))
def test_interpreted_kernel_of_any_shape(shape: tuple[int, ...], cfg: bool, depth: int) -> None:
    layout = "channels_last" if sum(shape) % 2 else "nchw"
    _compare(guided_step_cuda, _arguments(shape, layout=layout, cfg=cfg, depth=depth))


def test_interpreted_kernel_leaves_what_has_no_gradient_unguided() -> None:
    _check_dropped(guided_step_cuda)


def test_interpreted_kernel_does_not_read_history_that_no_step_has_written() -> None:
    arguments = _arguments()
    arguments["table"][STEP, Column.HISTORY_2 : Column.HISTORY_4 + 1] = 0.0
    clean, _ = _run(guided_step_cuda, arguments)
    arguments["history"][[1, 2, 3]] = torch.nan
    assert torch.equal(_run(guided_step_cuda, arguments)[0], clean)


def test_interpreted_kernel_writes_nan_rather_than_a_wrong_sample() -> None:
    """A row that is not there, noise or history that the row wants and does not get."""
    arguments = _arguments()
    wrong: list[Arguments] = [
        {"step": torch.tensor(-1)},
        {"step": torch.tensor(ROWS)},
        {"noise": None},
        {"noise": arguments["noise"][:STEP]},
        {"history": arguments["history"][:3]},
    ]
    for change in wrong:
        assert _run(guided_step_cuda, arguments | change)[0].isnan().all()
    # Noise may end before rows that draw none
    arguments["table"][STEP, Column.NOISE] = 0.0
    assert _run(guided_step_cuda, arguments | {"noise": arguments["noise"][:STEP]})[0].isfinite().all()


def test_interpreted_kernel_keeps_what_is_not_finite_in_its_image() -> None:
    arguments = _arguments((4, 4, 5, 5))
    arguments["sample"][1, 2, 3, 3] = torch.nan
    arguments["prediction"][2] = torch.inf
    sample, _ = _run(guided_step_cuda, arguments)
    assert sample[[0, 3]].isfinite().all() and sample[1].isnan().sum() == 1 and not sample[2].isfinite().any()


def test_interpreted_kernel_refuses_to_write_what_it_cannot_address() -> None:
    arguments = _arguments()
    for layout in (laid_out(arguments["sample"], "cropped"), arguments["sample"][:1].expand(3, -1, -1, -1)):
        with pytest.raises(ValueError, match="sample: expected pixels at one distance"):
            guided_step_cuda(**arguments | {"sample": layout})
    with pytest.raises(ValueError, match="sample: expected float32, got float64"):
        guided_step_cuda(**_precise(arguments))


def test_interpreted_kernel_beyond_int32() -> None:
    arguments = _arguments((2, 1, 3, 5), torch.bfloat16)
    far = arguments | {name: far_apart(arguments[name]) for name in ("prediction", "noise")}
    assert torch.equal(_run(guided_step_cuda, far)[0], _run(guided_step_cuda, arguments)[0])
