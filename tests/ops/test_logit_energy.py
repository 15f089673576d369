"""logit_energy: the reference, the C++ kernel and the default of plain torch against fp64, and what all refuse."""

from __future__ import annotations

import importlib.machinery
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prism_fast.energy.terms import Outputs, guidance_energy
from prism_fast.ops import logit_energy as module
from prism_fast.ops.logit_energy import LogitEnergy, logit_energy, logit_energy_op, logit_energy_ref
from tests.ops.logit_energy_cases import Arguments, compare, draw
from tests.ops.properties import given, settings, st

EXPECTED = os.environ.get("PRISM_FAST_BUILD", "none") != "none"
"""make test builds the extension and says so here."""

Operator = Callable[..., tuple[Tensor, ...]]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FLOATING = (0, 1, 3, 4)  # places of the floating outputs


def plain_torch(*arguments: object) -> tuple[Tensor, ...]:
    """The operator's body, which serves where no kernel is registered."""
    return logit_energy_op._init_fn(*arguments)  # type: ignore[no-any-return]


@pytest.fixture(params=["plain torch", "native"])
def operator(request: pytest.FixtureRequest) -> Operator:
    if request.param == "plain torch":
        return plain_torch
    if not module.NATIVE and not EXPECTED:
        pytest.skip("the extension is not built: make native")
    assert module.NATIVE, "make test builds the extension"
    assert torch._C._dispatch_has_kernel_for_dispatch_key("prism_fast::logit_energy", "CPU")
    return torch.ops.prism_fast.logit_energy.default


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.5])
@pytest.mark.parametrize("shape", [(64, 2), (64, 31), (48, 1000), (3, 64, 97), (7, 8, 1021)])
def test_matches_fp64(operator: Operator, dtype: torch.dtype, temperature: float, shape: tuple[int, ...]) -> None:
    compare(operator, draw(shape, dtype, temperature=temperature, topk=min(5, shape[-1])))


@pytest.mark.parametrize("spread", [1e-3, 30.0, 1e4])
def test_flat_and_certain_rows(operator: Operator, spread: float) -> None:
    arguments = draw((64, 101), spread=spread)
    compare(operator, arguments)
    compare(operator, arguments._replace(targets=arguments.logits.argmax(-1)))  # p_y − 1 must not cancel


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(0, 3),
    batch=st.integers(0, 5),
    classes=st.integers(2, 200),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_any_shape(members: int, batch: int, classes: int, dtype: torch.dtype, data: st.DataObject) -> None:
    topk = data.draw(st.integers(0, classes))
    shape = (members, batch, classes) if members else (batch, classes)
    arguments = draw(shape, dtype, topk=topk)
    got = torch.ops.prism_fast.logit_energy(*arguments)
    reference = logit_energy_ref(*arguments)
    assert torch.equal(got[2], reference[2])
    for mine, theirs in zip(got, reference, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=2e-5 if mine.dtype == torch.float32 else 1e-2)


def test_cotangent_is_the_gradient(operator: Operator) -> None:
    arguments = draw((3, 64, 53), temperature=1.7)
    logits = arguments.logits.double().requires_grad_()
    term = guidance_energy(free_weight=0.7, class_weight=1.3, temperature=1.7)
    energy = term.value(Outputs(logits=logits.mean(0)), arguments.targets)
    (expected,) = torch.autograd.grad(energy.sum(), logits)
    got = operator(*arguments)
    torch.testing.assert_close(got[0][0].double(), energy.detach(), atol=2e-5, rtol=1e-6)
    torch.testing.assert_close(got[1].double(), expected, atol=1e-6, rtol=0)
    reference = logit_energy_ref(arguments.logits.double(), *arguments[1:])[1]
    torch.testing.assert_close(reference, expected, atol=1e-13, rtol=0)


def test_laws_of_the_softmax(operator: Operator) -> None:
    """A shift of all logits moves free and joint energies by it and nothing else; cotangents sum to −free_weight."""
    arguments = draw((32, 64), temperature=2.0, topk=64)
    exact = arguments._replace(logits=(arguments.logits * 64).round() / 64)  # so that adding 8 rounds nothing
    got, shifted = operator(*exact), operator(*exact._replace(logits=exact.logits + 8))
    torch.testing.assert_close(shifted[0][1:3], got[0][1:3] - 8, atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[0][3:], got[0][3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[1], got[1], atol=1e-6, rtol=0)
    assert torch.equal(shifted[2], got[2])
    torch.testing.assert_close(got[1].sum(-1), torch.full((32,), -0.7), atol=1e-6, rtol=0)
    torch.testing.assert_close(got[3].sum(-1), torch.ones(32))
    assert torch.equal(got[4], torch.zeros(32))  # nothing remains behind all classes


def test_equal_weights_at_one_give_the_joint_energy(operator: Operator) -> None:
    arguments = draw((16, 40), weights=(1.0, 1.0))
    got = operator(*arguments)
    torch.testing.assert_close(got[0][0], got[0][2], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], -torch.nn.functional.one_hot(arguments.targets, 40).float())
    assert (got[1] == 0).sum() == 16 * 39  # exactly


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (-1.0, 2.0)])
def test_weights_of_zero_drop_their_term(operator: Operator, weights: tuple[float, float]) -> None:
    arguments = draw((64, 33), weights=weights, temperature=2.0)
    arguments.logits[torch.arange(64), arguments.targets] = -torch.inf  # cross-entropy +inf
    compare(operator, arguments)
    assert bool(operator(*arguments)[0][0].isinf().all()) == (weights[1] != 0)


def test_rows_without_softmax(operator: Operator) -> None:
    """NaN, +inf and nothing but −inf make NaN of their own rows only; −inf is probability 0."""
    arguments = draw((2, 64, 37), topk=4)
    untouched = operator(*arguments)
    logits = arguments.logits.clone()
    logits[0, 1, 3], logits[1, 2, 36], logits[0, 3], logits[0, 4, 5] = torch.nan, torch.inf, -torch.inf, -torch.inf
    logits[0, 5, 0], logits[1, 5, 0] = torch.inf, -torch.inf  # their mean is NaN
    special = arguments._replace(logits=logits)
    compare(operator, special)
    got = operator(*special)
    changed, kept = torch.tensor([1, 2, 3, 5]), torch.tensor([0, *range(6, 64)])
    for place in FLOATING:
        axis = {0: 1, 1: 1}.get(place, 0)
        assert got[place].index_select(axis, changed).isnan().all()
        assert torch.equal(got[place].index_select(axis, kept), untouched[place].index_select(axis, kept))
    assert torch.equal(got[2][changed], torch.arange(4).expand(4, 4))
    only = draw((1, 5), topk=3)
    only.logits.fill_(-torch.inf)[0, 3] = 2.0
    got = operator(*only)
    assert got[2].tolist() == [[3, 0, 1]] and got[3].tolist() == [[1, 0, 0]] and got[0][6].item() == 1


def test_equals_rank_by_index(operator: Operator) -> None:
    logits = torch.randint(3, (129, 501)).float()
    arguments = Arguments(logits, torch.zeros(129, dtype=torch.int64), topk=100)
    for topk in (1, 9, 64, 65, 501):
        indices = operator(*arguments._replace(topk=topk))[2]
        assert torch.equal(indices, logits.sort(dim=-1, descending=True, stable=True).indices[:, :topk])
    zeros = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    assert operator(zeros, torch.tensor([0]), 1.0, 1.0, 1.0, 4)[2].tolist() == [[0, 1, 2, 3]]


def test_layouts(operator: Operator) -> None:
    arguments = draw((3, 8, 31))
    want = operator(*arguments)
    apart = arguments.logits.permute(2, 1, 0).contiguous().permute(2, 1, 0)  # neighbouring classes lie apart
    wide = torch.randn(3, 8, 40)[..., :31].copy_(arguments.logits)  # rows lie apart
    every_other = arguments.targets.repeat_interleave(2)[::2]
    for logits in (apart, wide):
        assert not logits.is_contiguous()
        got = operator(*arguments._replace(logits=logits, targets=every_other))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert got[1].is_contiguous()
    image = torch.randn(4, 31, 1, 1).to(memory_format=torch.channels_last).flatten(1)
    assert operator(image, arguments.targets[:4], 1.0, 1.0, 1.0, 0)[1].shape == (4, 31)
    one = torch.randn(31).expand(8, 31)
    got = operator(*arguments._replace(logits=one))
    assert got[1].is_contiguous()
    torch.testing.assert_close(got[0][5], got[0][5, :1].expand(8))


def test_every_byte_is_written(operator: Operator) -> None:
    """With fresh memory full of NaN, a byte that is not written shows."""
    arguments = draw((3, 16, 65), temperature=3.0, topk=65)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        got = operator(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(got[place].isfinite().all() for place in FLOATING)
    assert torch.equal(got[2].sort(-1).values, torch.arange(65).expand(16, 65))


def test_empty_batch(operator: Operator) -> None:
    for shape in ((0, 5), (2, 0, 5)):
        got = operator(torch.empty(shape), torch.empty(0, dtype=torch.int64), 1.0, 1.0, 1.0, 2)
        assert [list(x.shape) for x in got] == [[7, 0], list(shape), [0, 2], [0, 2], [0]]


def test_same_bits_whatever_the_batch(operator: Operator) -> None:
    arguments = draw((200, 203))
    whole = operator(*arguments)
    one = operator(*arguments._replace(logits=arguments.logits[177:178], targets=arguments.targets[177:178]))
    assert torch.equal(whole[0][:, 177], one[0][:, 0])
    if operator is not plain_torch:  # torch's own reductions may depend on the batch; the kernel's rows may not
        assert torch.equal(whole[1][177], one[1][0])


REFUSED = [
    ({"logits": torch.randn(4)}, r"logits: expected \[B, K\] or \[M, B, K\], got \[4\]"),
    ({"logits": torch.randn(4, 5).double()}, "logits: expected float32, float16 or bfloat16, got .*(float64|Double)"),
    ({"logits": torch.randn(0, 4, 5)}, r"logits: expected at least one member, got \[0, 4, 5\]"),
    ({"logits": torch.randn(4, 1)}, r"logits: expected at least two classes, got \[4, 1\]"),
    ({"targets": torch.zeros(4, dtype=torch.int32)}, "targets: expected int64, got .*(int32|Int)"),
    ({"targets": torch.zeros(3, dtype=torch.int64)}, r"targets: expected \[4\], got \[3\]"),
    ({"targets": torch.zeros(4, 1, dtype=torch.int64)}, r"targets: expected \[4\], got \[4, 1\]"),
    ({"targets": torch.tensor([0, 1, 5, 2])}, "targets: expected 0 to 4, got 5"),
    ({"targets": torch.tensor([0, -1, 4, 2])}, "targets: expected 0 to 4, got -1"),
    ({"temperature": 0.0}, "temperature: expected a positive finite number, got 0"),
    ({"temperature": float("nan")}, "temperature: expected a positive finite number, got nan"),
    ({"topk": 6}, "topk: expected 0 to 5, got 6"),
    ({"topk": -1}, "topk: expected 0 to 5, got -1"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refusals_name_argument_expected_and_got(operator: Operator, change: dict[str, object], message: str) -> None:
    arguments = Arguments(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=message):
        operator(*arguments._replace(**change))  # type: ignore[arg-type]


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="targets: expected device cpu, got device meta"):
        logit_energy_op._init_fn(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64, device="meta"), 1.0, 1.0, 1.0, 0)


@pytest.mark.parametrize("shape", [(5, 17), (2, 5, 17), (0, 17)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    arguments = draw(shape, dtype, topk=2)
    torch.library.opcheck(logit_energy_op, tuple(arguments))


def test_the_wrapper_names_its_rows() -> None:
    arguments = draw((6, 10), topk=3)
    got = logit_energy(arguments.logits, arguments.targets, temperature=1.0, free_weight=0.7, class_weight=1.3, topk=3)
    assert isinstance(got, LogitEnergy)
    torch.testing.assert_close(got.energy, 0.7 * got.free + 1.3 * got.cross_entropy)
    torch.testing.assert_close(got.joint, -arguments.logits.gather(1, arguments.targets[:, None])[:, 0])
    torch.testing.assert_close(got.max_probability, got.topk_probabilities[:, 0])
    torch.testing.assert_close(got.margin, got.topk_probabilities[:, 0] - got.topk_probabilities[:, 1])
    torch.testing.assert_close(got.remaining, 1 - got.topk_probabilities.sum(-1), atol=1e-6, rtol=1e-5)


def test_torch_compile_sees_one_graph() -> None:
    arguments = draw((6, 19), temperature=2.0)

    def call(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        got = logit_energy(logits * 2, targets, temperature=2.0, topk=3)
        return got.energy + got.margin, got.cotangent * 2, got.topk_indices

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*arguments[:2]), call(*arguments[:2]), strict=True):
        torch.testing.assert_close(a, b)


def test_a_broken_extension_is_not_taken_for_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    spec = importlib.machinery.ModuleSpec("prism_fast._C", None, origin=str(broken))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(ImportError, match="make native"):
        module._load_native()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert module._load_native() is False


@pytest.mark.slow
def test_more_elements_than_int32_counts() -> None:
    """2³¹ + 2³ logits: byte and element offsets beyond 32 bits, in the last rows."""
    classes = 2**15
    batch = 2**16 + 1
    logits = torch.zeros(batch, classes, dtype=torch.float16)
    last = torch.randn(2, classes, dtype=torch.float16)
    logits[-2:] = last
    targets = torch.full((batch,), 7)
    got = torch.ops.prism_fast.logit_energy(logits, targets, 1.0, 0.5, 1.0, 2)
    want = torch.ops.prism_fast.logit_energy(last, targets[-2:], 1.0, 0.5, 1.0, 2)
    assert torch.equal(got[0][:, -2:], want[0]) and torch.equal(got[1][-2:], want[1])
    assert torch.equal(got[2][-2:], want[2]) and torch.equal(got[4][-2:], want[4])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 31), (48, 1000), (3, 64, 97), (7, 8, 1024), (4, 21841)])
def test_matches_fp64_on_cuda(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def on_cuda(logits: Tensor, targets: Tensor, *rest: float) -> tuple[Tensor, ...]:
        got = torch.ops.prism_fast.logit_energy(logits.cuda(), targets.cuda(), *rest)
        return tuple(x.cpu() for x in got)

    arguments = draw(shape, dtype, temperature=1.5)
    compare(on_cuda, arguments)
    arguments.targets[0], arguments.targets[1] = -1, shape[-1]
    compare(on_cuda, arguments)  # the rows are NaN, as the reference's
