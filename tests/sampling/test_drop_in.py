"""prism_fast.compile against the diffusers pipelines it wraps: the same arguments, the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Generator, Tensor

import prism_fast
from prism_fast.energy.terms import guidance_energy
from prism_fast.errors import UserError
from prism_fast.pipeline.load import load_pipeline
from prism_fast.sampling import kept
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.copies import Copies
from prism_fast.sampling.drop_in import FastPipeline
from prism_fast.sampling.fast import FastSampler
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.ensemble import EnsembleTeacher
from prism_fast.teachers.load import load_teacher
from tests.tiny import save_tiny_decoder, save_tiny_pipeline, save_tiny_teacher, tiny_pipeline, tiny_xl_pipeline

PROMPTS = ["a photo of a coat", "a dark boot", "a silhouette of a bag"]
SCHEDULERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("PNDMScheduler", {"skip_prk_steps": True}, {}),
    ("DDIMScheduler", {}, {}),
    ("DDIMScheduler", {}, {"eta": 0.7}),
    ("DDPMScheduler", {"clip_sample": False}, {}),
    ("EulerDiscreteScheduler", {}, {"eta": 0.7}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}, {}),
]


def scheduled(pipe: Any, name: str, options: dict[str, Any]) -> Any:
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    return pipe


@pytest.fixture
def pipe() -> Any:
    return scheduled(tiny_pipeline(0), "PNDMScheduler", {"skip_prk_steps": True})


@pytest.fixture(scope="module")
def shared() -> FastPipeline:
    return prism_fast.compile(tiny_pipeline(0))


@pytest.fixture
def xl() -> Any:
    return tiny_xl_pipeline(0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> EagerTeacher:
    return load_teacher(str(save_tiny_teacher(tmp_path_factory.mktemp("teacher"))))


def one(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def each(seed: int, count: int) -> list[Generator]:
    return [one(seed + index) for index in range(count)]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Median 1e-6 of the largest value; no image far off."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    error = (found - expected).abs() / expected.abs().max()
    assert error.median() <= 1e-6 and error.max() <= 1e-3, (error.median(), error.max())


def assert_same(fast: FastPipeline, arguments: Any, **others: Any) -> Tensor:
    """``arguments`` is called for those of each pipeline, because generators are used up."""
    options = {"num_inference_steps": 4, "output_type": "latent"} | others
    expected = fast.pipe(**(options | arguments())).images
    found = fast(**(options | arguments())).images
    assert_near(found, expected)
    return found


@pytest.mark.parametrize(("name", "options", "others"), SCHEDULERS)
def test_each_scheduler(pipe: Any, name: str, options: dict[str, Any], others: dict[str, Any], seed: int) -> None:
    fast = prism_fast.compile(scheduled(pipe, name, options))
    arguments = {"prompt": PROMPTS, "num_inference_steps": 6} | others
    assert_same(fast, lambda: arguments | {"generator": each(seed, 3)})
    assert_same(fast, lambda: arguments | {"generator": one(seed)})


def test_the_scheduler_of_the_moment_counts(pipe: Any, seed: int) -> None:
    fast = prism_fast.compile(pipe)
    first = assert_same(fast, lambda: {"prompt": "boot", "generator": one(seed)})
    scheduled(pipe, "EulerAncestralDiscreteScheduler", {})
    second = assert_same(fast, lambda: {"prompt": "boot", "generator": one(seed)})
    assert not torch.equal(first, second)
    scheduled(pipe, "LCMScheduler", {})
    with pytest.raises(UserError, match="is a LCMScheduler; supported are PNDMScheduler"):
        fast("boot")


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_turbo(name: str, steps: int, seed: int) -> None:
    """SD-Turbo: few steps, trailing, no classifier-free guidance; negative prompts say nothing then."""
    fast = prism_fast.compile(scheduled(tiny_pipeline(0), name, {"timestep_spacing": "trailing"}))
    arguments = {"prompt": PROMPTS[0], "guidance_scale": 0.0, "num_inference_steps": steps}
    found = assert_same(fast, lambda: arguments | {"generator": one(seed), "negative_prompt": "dark"})
    assert torch.equal(fast(**arguments, generator=one(seed), output_type="latent").images, found)


def test_prompts_and_noise(pipe: Any, seed: int) -> None:
    fast = prism_fast.compile(scheduled(pipe, "EulerAncestralDiscreteScheduler", {}), config={"compute_batch": 2})
    noise = torch.randn(3, 4, 8, 8, generator=one(seed))
    text = pipe.encode_prompt(PROMPTS, torch.device("cpu"), 1, True)
    cases: list[Any] = [
        lambda: {"prompt": PROMPTS, "latents": noise, "generator": one(seed)},
        lambda: {"prompt": PROMPTS, "latents": noise, "generator": each(seed, 3)},
        lambda: {"prompt": "a boot", "negative_prompt": "dark", "generator": one(seed)},
        lambda: {"prompt": PROMPTS, "negative_prompt": ["dark", "", "coat"], "generator": each(seed, 3)},
        lambda: {"prompt": PROMPTS[:2], "num_images_per_prompt": 3, "generator": each(seed, 6)},
        lambda: {"prompt": PROMPTS[:2], "num_images_per_prompt": 3, "generator": one(seed)},
        lambda: {"prompt_embeds": text[0], "negative_prompt_embeds": text[1], "generator": one(seed)},
        lambda: {"prompt_embeds": text[0], "generator": one(seed), "num_images_per_prompt": 2},
        lambda: {"prompt": PROMPTS, "negative_prompt_embeds": text[0], "generator": one(seed)},
        lambda: {"prompt_embeds": text[0][:, :17], "generator": one(seed)},
        lambda: {"prompt": PROMPTS, "height": 48, "width": 40, "generator": one(seed)},
        lambda: {"prompt": PROMPTS, "height": 48, "generator": one(seed)},  # diffusers: both or none
        lambda: {"prompt": "boot " * 30, "generator": one(seed)},
    ]
    for case in cases:
        assert_same(fast, case)
    torch.manual_seed(seed)
    expected = pipe(PROMPTS, num_inference_steps=3, output_type="latent").images
    torch.manual_seed(seed)
    assert_near(fast(PROMPTS, num_inference_steps=3, output_type="latent").images, expected)


def test_generators_are_left_where_diffusers_leaves_them(pipe: Any, seed: int) -> None:
    fast = prism_fast.compile(scheduled(pipe, "EulerAncestralDiscreteScheduler", {}))
    for make in (lambda: [one(seed)], lambda: each(seed, 2)):
        used, ours = make(), make()
        arguments = {"prompt": PROMPTS[:2], "num_inference_steps": 2, "output_type": "latent"}
        pipe(**arguments, generator=used if len(used) > 1 else used[0])
        fast(**arguments, generator=ours if len(ours) > 1 else ours[0])
        for left, right in zip(used, ours, strict=True):
            assert torch.equal(left.get_state(), right.get_state())


def test_seeds_are_generators(pipe: Any, seed: int) -> None:
    fast = prism_fast.compile(scheduled(pipe, "DDPMScheduler", {"clip_sample": False}))
    arguments = {"prompt": PROMPTS, "num_inference_steps": 3, "output_type": "latent"}
    found = fast(**arguments, seeds=[seed, seed + 1, seed + 2]).images
    assert torch.equal(found, fast(**arguments, generator=each(seed, 3)).images)


def test_batches_change_nothing_but_the_last_bits(pipe: Any, seed: int) -> None:
    arguments = {"prompt": PROMPTS, "num_inference_steps": 4, "output_type": "latent"}
    whole = prism_fast.compile(pipe)(**arguments, generator=one(seed)).images
    split = prism_fast.compile(pipe, config={"compute_batch": 2})(**arguments, generator=one(seed)).images
    assert_near(split, whole)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_each_output_type(pipe: Any, xl: Any, kind: str, seed: int) -> None:
    wrapped = pipe if kind == "sd" else xl
    fast = prism_fast.compile(wrapped)
    arguments = {"prompt": PROMPTS, "num_inference_steps": 3}
    both = fast.pipe, fast
    for name in ("pil", "np", "pt", "latent"):
        expected, found = (made(**arguments, generator=each(seed, 3), output_type=name) for made in both)
        assert isinstance(found, type(expected)) and type(found.images) is type(expected.images)
        assert found.energies is None and found.logits is None
        if name == "pil":
            assert [image.size for image in found.images] == [(32, 32)] * 3
            pairs = zip(found.images, expected.images, strict=True)
            assert max(np.abs(np.int16(a) - np.int16(b)).max() for a, b in pairs) <= 1
        else:
            assert_near(torch.as_tensor(found.images), torch.as_tensor(expected.images))
        other, plain = (
            made(**arguments, generator=each(seed, 3), output_type=name, return_dict=False) for made in both
        )
        assert isinstance(other, tuple) and len(other) == len(plain) and other[1:] == plain[1:]


def test_guidance_lowers_the_energy(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    scheduled(pipe, "DDIMScheduler", {})
    arguments = {"prompt": PROMPTS, "num_inference_steps": 8, "output_type": "pt", "seeds": [seed, seed + 1, seed + 2]}
    options = {"scale": 0.1, "start": 0.25}
    fast = prism_fast.compile(pipe, teacher, options, {"compute_batch": 2})
    found = fast(**arguments, classes=[4, 9, 8])
    assert found.energies.shape == (6, 3) and found.logits.shape == (3, 10)
    torch.testing.assert_close(found.logits, teacher.outputs(found.images).logits, rtol=1e-4, atol=1e-4)
    plain = prism_fast.compile(pipe)(**arguments).images
    energy = guidance_energy(free_weight=1.0, class_weight=1.0, temperature=1.0)
    guided, unguided = (energy.value(teacher.outputs(x), torch.tensor([4, 9, 8])) for x in (found.images, plain))
    assert (guided < unguided).all()
    latent = fast(**(arguments | {"output_type": "latent"}), classes=[4, 9, 8])
    assert latent.logits is None and torch.equal(latent.energies, found.energies)
    free = prism_fast.compile(pipe, teacher, GuidanceConfig(gate="none", class_weight=0.0))
    assert free("boot", num_inference_steps=2).energies.shape == (2, 1)


def test_options_of_level_fast(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    options = {"decoder": "kl@24", "every": 2, "reuse_gradient": True, "direction": "random"}
    config = {"level": "fast", "reuse_features": 2, "cfg_stop": 0.5}
    fast = prism_fast.compile(pipe, teacher, options, config)
    found = fast(PROMPTS, height=48, width=40, num_inference_steps=4, seeds=[1, 2, 3], classes=5, output_type="np")
    assert found.images.shape == (3, 48, 40, 3) and np.isfinite(found.images).all()
    with pytest.raises(UserError, match="random is drawn from seeds"):
        fast(PROMPTS, classes=5)


def test_the_pipeline_is_left_as_it_was(pipe: Any, teacher: EagerTeacher, seed: int) -> None:
    networks = (pipe.unet, pipe.vae, pipe.text_encoder)
    before = [(p.clone(), p.stride(), p.data_ptr(), p._version) for n in networks for p in n.parameters()]
    forwards, scheduler = [n.forward for n in networks], dict(pipe.scheduler.config)
    arguments = {"prompt": "a coat", "num_inference_steps": 3, "output_type": "latent"}
    first = pipe(**arguments, generator=one(seed)).images
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in vars(pipe.scheduler).items()}
    fast = prism_fast.compile(pipe, teacher, config={"level": "fast", "reuse_features": 2})
    fast(PROMPTS, num_inference_steps=5, seeds=[1, 2, 3], classes=3)
    for (value, stride, place, version), p in zip(before, (p for n in networks for p in n.parameters()), strict=True):
        assert torch.equal(p, value) and (p.stride(), p.data_ptr(), p._version) == (stride, place, version)
    assert [n.forward for n in networks] == forwards and dict(pipe.scheduler.config) == scheduler
    for key, value in vars(pipe.scheduler).items():
        assert torch.equal(value, state[key]) if isinstance(value, Tensor) else str(value) == str(state[key]), key
    assert torch.equal(pipe(**arguments, generator=one(seed)).images, first)


def test_changes_of_the_pipeline_are_noticed(pipe: Any, seed: int) -> None:
    fast, other = prism_fast.compile(pipe), tiny_pipeline(5)
    last = assert_same(fast, lambda: {"prompt": "boot", "generator": one(seed)})
    changes: list[Any] = [
        lambda: pipe.unet.conv_in.weight.mul_(1.5),  # in place, as fusing a LoRA
        lambda: pipe.text_encoder.load_state_dict(other.text_encoder.state_dict()),
        lambda: setattr(pipe, "unet", other.unet),
    ]
    for change in changes:
        with torch.no_grad():
            change()
        found = assert_same(fast, lambda: {"prompt": "boot", "generator": one(seed)})
        assert not torch.equal(found, last)
        last = found
    pipe.vae = other.vae
    expected, found = (made("boot", num_inference_steps=2, generator=one(1), output_type="pt") for made in (pipe, fast))
    assert_near(found.images, expected.images)


class _Layer(torch.nn.Module):
    """A linear layer under a layer of peft, whose merging writes through ``.data``."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.merged_adapters, self.scaling = base, list[str](), {"style": 1.0}
        self.lora = torch.nn.Parameter(torch.randn_like(base.weight) * base.weight.std(), requires_grad=False)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        made: Tensor = self.base_layer(x)
        return made if self.merged_adapters else made + x @ (self.scaling["style"] * self.lora).T

    def merge(self, sign: int) -> None:
        self.base_layer.weight.data += sign * self.scaling["style"] * self.lora
        self.merged_adapters = ["style"] if sign > 0 else []


@pytest.mark.parametrize("channels_last", [False, True])
def test_changes_that_no_version_shows(
    pipe: Any, channels_last: bool, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Merged adapters, FreeU, processors, writes through ``.data``; with copies that own weights, and that do not."""
    monkeypatch.setattr(kept, "copies_for", lambda *_: Copies(channels_last))
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_q = layer = _Layer(attention.to_q)
    fast = prism_fast.compile(pipe)
    arguments = {"num_inference_steps": 3, "output_type": "pt"}

    def both() -> tuple[Tensor, Tensor]:
        expected, found = (made("boot", **arguments, generator=one(seed)).images for made in (pipe, fast))
        return expected, found

    def halve(network: Any) -> None:
        for weight in network.parameters():
            weight.data.mul_(0.5)

    changes: list[Any] = [
        lambda: layer.merge(1),
        lambda: layer.scaling.update(style=0.5),
        lambda: layer.merge(-1),
        lambda: halve(pipe.text_encoder),
        lambda: pipe.enable_freeu(0.3, 0.2, 1.5, 1.7),
        lambda: pipe.unet.set_attn_processor(_Halved()),
        lambda: pipe.disable_freeu(),
        lambda: halve(pipe.unet),
        lambda: halve(pipe.vae),
    ]
    _, last = both()
    for index, change in enumerate(changes):
        change()
        expected, found = both()
        error = (found - expected).abs()
        assert error.median() <= 1e-5 and error.max() <= 1e-3, (index, error.max())
        assert index < 2 or not torch.equal(found, last), index  # merging alone changes last bits at most
        last = found


class _Halved(AttnProcessor):
    def __call__(self, *arguments: Any, **others: Any) -> Tensor:
        made: Tensor = super().__call__(*arguments, **others)
        return made * 0.5


def test_a_setting_that_would_do_nothing_is_an_error(pipe: Any) -> None:
    with pytest.raises(AttributeError, match="scheduler"):
        prism_fast.compile(pipe).scheduler = pipe.scheduler  # type: ignore[attr-defined]


def test_samplers_and_embeddings_are_kept(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = prism_fast.compile(pipe)
    asked: list[list[str]] = []
    encode = pipe.encode_prompt
    monkeypatch.setattr(pipe, "encode_prompt", lambda p, *a, **k: (asked.append(p), encode(p, *a, **k))[1])
    for size in (32, 40, 48, 32, 56, 64, 32):
        fast(["boot", "coat", "boot"], num_inference_steps=1, height=size, width=32, output_type="latent")
    assert asked == [["boot", "coat", *[""] * 6]]
    assert len(fast._samplers) == kept.SAMPLERS


def test_every_network_call_has_one_shape(
    pipe: Any, teacher: EagerTeacher, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """So an image depends neither on how many others there are nor on how many prompts were new."""
    fast = prism_fast.compile(pipe, teacher, config={"compute_batch": 4})
    rows: dict[str, set[int]] = {}
    for name, network in {"text": pipe.text_encoder, "teacher": teacher.model}.items():
        network.register_forward_pre_hook(
            lambda _, given, kept, name=name: rows.setdefault(name, set()).add(len((*given, *kept.values())[0])),
            with_kwargs=True,
        )
    arguments = {"num_inference_steps": 2, "output_type": "pt", "classes": 3}
    prompts = [f"{prompt} {kind}" for prompt in PROMPTS for kind in ("dark", "light", "coat")]
    many = fast(prompts, seeds=range(seed, seed + 9), **arguments)
    assert rows == {"text": {8}, "teacher": {4}}
    fast._encoder.forget()
    alone = fast(prompts[8], seeds=[seed + 8], **arguments)
    assert rows == {"text": {8}, "teacher": {4}}
    assert torch.equal(alone.images[0], many.images[8]) and torch.equal(alone.logits[0], many.logits[8])


def test_memory_that_runs_out_halves_the_batch(
    pipe: Any, teacher: EagerTeacher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Where a sampler is made, in its loop and in the last decoding; what was drawn and delivered stays."""
    scheduled(pipe, "EulerAncestralDiscreteScheduler", {})
    arguments = {"prompt": PROMPTS, "num_images_per_prompt": 3, "num_inference_steps": 2, "output_type": "latent"}
    weak = {"scale": 0.01}  # a gradient of ReLUs jumps, and with it what is compared
    guided = {"classes": [*range(9)]}
    expected = prism_fast.compile(pipe, teacher, weak)(**arguments, **guided, generator=one(seed))
    assert expected.compute_batch == [9] * 9
    fast = prism_fast.compile(pipe, teacher, weak, config={"compute_batch": 6})
    asked: list[tuple[str, int]] = []

    def limited(name: str, most: int, *, spared: int = 0) -> None:
        whole = getattr(FastSampler, name)

        def part(self: FastSampler, *given: Any, **named: Any) -> Any:
            batch = given[1].compute_batch if name == "__init__" else self.config.compute_batch
            asked.append((name, batch))
            if batch > most and asked.count((name, batch)) > spared:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(self, *given, **named)

        monkeypatch.setattr(FastSampler, name, part)

    limited("__init__", 5)
    limited("run", 2)
    with caplog.at_level("WARNING"):
        found = fast(**arguments, **guided, generator=one(seed))
    assert [record.args for record in caplog.records] == [(3, 6), (2, 6)]
    assert found.compute_batch == [2] * 9
    assert_near(found.images, expected.images)
    caplog.clear()
    again = fast(**arguments, **guided, generator=one(seed))
    assert (
        not caplog.records and torch.equal(again.images, found.images) and torch.equal(again.energies, found.energies)
    )
    # the second batch of a call, when it has run already
    limited("images", 1, spared=1)
    whole = arguments | {"output_type": "pt"}
    found = fast(**whole, **guided, generator=one(seed))
    assert found.compute_batch == [2] * 2 + [1] * 7 and found.images.shape == (9, 3, 32, 32)
    assert found.energies.shape == (2, 9) and found.logits.shape == (9, 10)
    monkeypatch.undo()
    assert_near(found.images, prism_fast.compile(pipe, teacher, weak)(**whole, **guided, generator=one(seed)).images)
    monkeypatch.setattr(FastSampler, "run", _no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        fast(**arguments, **guided)


def _no_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_pipeline_that_was_converted_is_followed(pipe: Any, seed: int) -> None:
    fast, fixed = prism_fast.compile(pipe), prism_fast.compile(pipe, config={"dtype": "float32"})
    arguments = {"prompt": PROMPTS, "num_inference_steps": 2, "output_type": "pt"}
    full = fast(**arguments, generator=one(seed)).images
    pipe.to(torch.bfloat16)
    found, plain = (made(**arguments, generator=one(seed)).images for made in (fast, pipe))
    assert found.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain, rtol=0, atol=0.05)
    with pytest.raises(UserError, match=r"dtype is float32, the pipeline is in torch.bfloat16: leave dtype out"):
        fixed("boot")
    pipe.to(torch.float32)
    assert not torch.equal(fast(**arguments, generator=one(seed)).images, full)  # rounded to bf16 in between
    assert fixed(**arguments, generator=one(seed)).images.dtype == torch.float32


def test_a_teacher_elsewhere_is_refused(pipe: Any, teacher: EagerTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = prism_fast.compile(pipe, teacher)
    for place in ("cuda:1", "meta"):
        monkeypatch.setattr(teacher, "device", torch.device(place))
        for several in (teacher, EnsembleTeacher([teacher])):
            with pytest.raises(
                UserError, match=rf"teacher is on {place}, the pipeline on cpu: .*load_teacher\(NAME, 'cpu'"
            ):
                prism_fast.compile(pipe, several)
    monkeypatch.undo()
    pipe.to("meta")
    with pytest.raises(UserError, match=r"the teacher is on cpu, the pipeline on meta: load the teacher there"):
        fast("boot", classes=1)


def test_a_folder_and_a_name(pipe: Any, tmp_path: Path, seed: int) -> None:
    folder, teacher = save_tiny_pipeline(tmp_path / "pipeline"), save_tiny_teacher(tmp_path / "teacher")
    fast = prism_fast.compile(str(folder), str(teacher), {"scale": 0.2})
    found = fast("boot", num_inference_steps=2, classes=1, seeds=[seed])
    assert found.energies.isfinite().all() and found.images[0].size == (32, 32)
    built_in = prism_fast.compile("fashion", "fashion", config={"compute_batch": 2})
    assert built_in("a boot", num_inference_steps=2, classes=9).logits.shape == (1, 10)


def test_a_folder_of_an_xl(xl: Any, tmp_path: Path, seed: int) -> None:
    xl.save_pretrained(tmp_path / "pipeline", safe_serialization=True)
    arguments = {"prompt": PROMPTS[0], "num_inference_steps": 2, "output_type": "latent", "seeds": [seed]}
    found = prism_fast.compile(str(tmp_path / "pipeline"))(**arguments).images
    assert torch.equal(found, prism_fast.compile(xl)(**arguments).images)
    (tmp_path / "pipeline" / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="text_encoder_2"):
        prism_fast.compile(str(tmp_path / "pipeline"))


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "drop-in.md").read_text()
    block = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace("steps=10", "steps=2"), "drop-in.md", "exec"), {})
    assert (tmp_path / "coat.png").is_file()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_half_precision(kind: str, dtype: torch.dtype, seed: int) -> None:
    """No further from fp32 than twice the pipeline's own error; a fp16 autoencoder is not converted in place."""
    make = tiny_pipeline if kind == "sd" else tiny_xl_pipeline
    full, half = make(0), make(0).to(dtype)
    noise = torch.randn(3, 4, 8, 8, generator=one(seed)).to(dtype)
    arguments = {"prompt": PROMPTS, "num_inference_steps": 3, "output_type": "pt"}
    truth = full(**arguments, latents=noise.float()).images
    fast = prism_fast.compile(half, config={"dtype": str(dtype).removeprefix("torch.")})
    plain, found = (made(**arguments, latents=noise.clone()).images for made in (half, fast))
    assert found.dtype == plain.dtype and half.vae.dtype == dtype and half.unet.dtype == dtype
    error, budget = ((x.float() - truth).square().mean().sqrt() for x in (found, plain))
    assert error <= 2 * budget, (error, budget)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_pipeline_loaded_in_fp16_can_be_used_beside_ours(kind: str, tmp_path: Path, seed: int) -> None:
    """Its autoencoder stays in fp32."""
    (tiny_pipeline if kind == "sd" else tiny_xl_pipeline)(0).save_pretrained(tmp_path / "pipeline")
    fast = prism_fast.compile(load_pipeline(str(tmp_path / "pipeline"), "cpu", torch.float16))
    arguments = {"prompt": PROMPTS, "num_inference_steps": 2, "output_type": "pt"}
    plain, found = (made(**arguments, generator=one(seed)).images for made in (fast.pipe, fast))
    assert found.dtype == plain.dtype == fast.pipe.vae.dtype == torch.float32
    torch.testing.assert_close(found, plain, rtol=0, atol=0.05)


def test_a_safety_checker_is_run(pipe: Any, seed: int) -> None:
    class Checker(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, images: Tensor, clip_input: Tensor) -> tuple[Tensor, list[bool]]:
            images = images.clone()
            images[1] = 0
            return images, [False, True, False]

    class Extractor:
        def __call__(self, images: Any, return_tensors: str) -> Any:
            return type("Batch", (dict,), {"to": lambda self, _: self, "pixel_values": torch.zeros(3)})()

    pipe.safety_checker, pipe.feature_extractor = Checker(), Extractor()
    fast = prism_fast.compile(pipe)
    arguments = {"prompt": PROMPTS, "num_inference_steps": 2}
    for kind in ("np", "pil"):
        expected, found = (made(**arguments, generator=one(seed), output_type=kind) for made in (pipe, fast))
        assert found.nsfw_content_detected == expected.nsfw_content_detected == [False, True, False]
        a, b = (np.stack([np.asarray(x, dtype=np.float32) for x in made.images]) for made in (expected, found))
        assert not b[1].any() and np.abs(a - b).max() <= 1 and b[0].any()


def test_xl(xl: Any, seed: int) -> None:
    fast = prism_fast.compile(xl, config={"compute_batch": 2})
    text, without, pooled, without_pooled = xl.encode_prompt(PROMPTS, negative_prompt=["dark"] * 3)
    embeds = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    sizes = {"original_size": (20, 24), "crops_coords_top_left": (3, 5), "target_size": (32, 32)}
    negative = {"negative_original_size": (8, 8), "negative_target_size": (16, 32)}
    cases: list[dict[str, Any]] = [
        {"prompt": PROMPTS},
        {"prompt": PROMPTS, "prompt_2": PROMPTS[::-1], "negative_prompt": "dark", "negative_prompt_2": "coat"},
        {"prompt": PROMPTS, "negative_prompt": ["", "dark", "coat"]},
        {"prompt": PROMPTS, "height": 48, "num_images_per_prompt": 2},
        {"prompt": PROMPTS} | sizes,
        {"prompt": PROMPTS[1]} | sizes | negative,
        embeds | {"negative_prompt_embeds": without, "negative_pooled_prompt_embeds": without_pooled},
        embeds,
        {"prompt": PROMPTS, "guidance_scale": 0.0, "num_inference_steps": 1},
    ]
    for case in cases:
        assert_same(fast, lambda case=case: case | {"generator": one(seed)})
    # of every second image of a call diffusers swaps the sizes of its two halves; here it is as if alone
    noise = torch.randn(3, 4, 8, 8, generator=one(seed))
    arguments = sizes | negative | {"num_inference_steps": 3, "output_type": "latent"}
    together = fast(PROMPTS, latents=noise, **arguments).images
    alone = [xl(prompt, latents=row[None], **arguments).images for prompt, row in zip(PROMPTS, noise, strict=True)]
    assert_near(together, torch.cat(alone))
    xl.register_to_config(force_zeros_for_empty_prompt=False)
    assert_same(fast, lambda: {"prompt": PROMPTS, "generator": one(seed)})
    scheduled(xl, "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"})
    for steps in (1, 4):  # SDXL-Turbo
        turbo = {"prompt": PROMPTS, "guidance_scale": 0.0, "num_inference_steps": steps}
        assert_same(fast, lambda turbo=turbo: turbo | {"generator": each(seed, 3)})
    with torch.no_grad():
        xl.text_encoder_2.text_projection.weight.mul_(2)
    assert_same(fast, lambda: {"prompt": PROMPTS, "generator": one(seed)})


def test_xl_guided_and_with_reuse(xl: Any, teacher: EagerTeacher, seed: int) -> None:
    exact = prism_fast.compile(xl, teacher, {"scale": 0.2})
    arguments = {"prompt": PROMPTS, "num_inference_steps": 6, "classes": [4, 9, 8], "output_type": "pt"}
    found = exact(**arguments, seeds=[seed, seed + 1, seed + 2])
    assert found.energies.shape == (6, 3) and found.logits.shape == (3, 10)
    reused = prism_fast.compile(xl, config={"level": "fast", "reuse_features": 2})
    latents = {"prompt": PROMPTS, "num_inference_steps": 10, "output_type": "latent", "seeds": [seed] * 3}
    plain = prism_fast.compile(xl)(**latents).images
    rms = (reused(**latents).images - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert 1e-5 < rms < 0.3


def test_compile_refuses(pipe: Any, teacher: EagerTeacher, tmp_path: Path) -> None:
    compile_, euler = prism_fast.compile, diffusers.EulerDiscreteScheduler
    with pytest.raises(
        UserError, match=r"StableDiffusionImg2ImgPipeline is not supported: .* takes a StableDiffusionPi"
    ):
        compile_(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    with pytest.raises(UserError, match="guidance needs a teacher"):
        compile_(pipe, guidance={})
    with pytest.raises(UserError, match="no such option as scales"):
        compile_(pipe, teacher, {"scales": 1})
    with pytest.raises(UserError, match="set gate: none"):
        compile_(pipe, teacher, GuidanceConfig())
    with pytest.raises(UserError, match="scheduler comes from the call or the pipeline's scheduler"):
        compile_(pipe, config={"scheduler": "ddim"})
    with pytest.raises(UserError, match="batch_size is no such option; options are compute_batch"):
        compile_(pipe, config={"batch_size": 2})
    with pytest.raises(UserError, match="use exact or fast"):
        compile_(pipe, config={"level": "reference"})
    with pytest.raises(ValueError, match="set level: fast"):
        compile_(pipe, config={"reuse_features": 2})
    with pytest.raises(UserError, match=r"dtype is bfloat16, the pipeline is in torch.float32"):
        compile_(pipe, config={"dtype": "bfloat16"})
    with pytest.raises(UserError, match="no such pipeline folder"):
        compile_(str(tmp_path / "nowhere"))
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UserError, match=r"UniPCMultistepScheduler; supported are .*DPMSolverMultistepScheduler"):
        compile_(pipe)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=3)
    with pytest.raises(UserError, match="solver_order=3, supported is 2"):
        compile_(pipe)
    pipe.scheduler = euler.from_config(pipe.scheduler.config)
    pipe.unet.encoder_hid_proj = torch.nn.Identity()
    with pytest.raises(UserError, match="unload_ip_adapter"):
        compile_(pipe)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"timesteps": [1]}, UserError, "timesteps is not supported .*num_inference_steps"),
    ({"guidance_rescale": 0.5}, UserError, "guidance_rescale is not supported"),
    ({"clip_skip": 1}, UserError, "give prompt_embeds"),
    ({"callback_on_step_end": print}, UserError, "callback_on_step_end is not supported"),
    ({"cross_attention_kwargs": {"scale": 0.5}}, UserError, "pipe.set_adapters"),
    ({"ip_adapter_image": 1}, UserError, "IP-adapters"),
    ({"promt": "boot"}, TypeError, "unexpected argument 'promt'"),
    ({"prompt_2": "boot"}, TypeError, "it is an SDXL's"),
    ({"output_type": "jpeg"}, UserError, "pil, np, pt, latent"),
    ({"prompt": None}, ValueError, "Provide either `prompt` or `prompt_embeds`"),
    ({"prompt": []}, UserError, "give at least one"),
    ({"height": 33, "width": 32}, ValueError, "divisible by 8"),
    ({"negative_prompt": ["dark"]}, TypeError, "prompt is a str, negative_prompt a list"),
    ({"seeds": [1, 2]}, UserError, "2 in seeds for 1 images"),
    ({"seeds": [-1]}, UserError, "outside"),
    ({"seeds": [1], "generator": Generator()}, UserError, "not both"),
    ({"generator": [Generator()] * 2}, UserError, "2 in generator for 1 images"),
    ({"latents": torch.zeros(1, 4, 9, 8)}, UserError, "expected .1, 4, 8, 8."),
    ({"classes": 1}, UserError, "give prism_fast.compile a teacher"),
    ({"num_inference_steps": 0}, ValueError, "steps must be a whole number"),
    ({"num_images_per_prompt": 0}, UserError, "num_images_per_prompt"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_calls_that_are_refused(
    shared: FastPipeline, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        shared(**({"prompt": "boot"} | arguments))


def test_what_means_nothing_is_taken(pipe: Any) -> None:
    nothing = {"timesteps": None, "sigmas": None, "guidance_rescale": 0.0, "clip_skip": None, "eta": 0.3}
    assert len(prism_fast.compile(pipe)("boot", num_inference_steps=1, **nothing).images) == 1


def test_guided_calls_that_are_refused(pipe: Any, teacher: EagerTeacher) -> None:
    fast = prism_fast.compile(pipe, teacher)
    for classes, message in (
        (None, "needs classes"),
        ([1, 2], "2 classes for 1 images"),
        (10, "must be in 0 .. 10 - 1"),
    ):
        with pytest.raises(UserError, match=message):
            fast("boot", classes=classes)


def test_a_small_decoder_guides(pipe: Any, teacher: EagerTeacher, tmp_path: Path, seed: int) -> None:
    options = {"decoder": "tiny@16", "scale": 0.3}
    place = {"tiny": str(save_tiny_decoder(tmp_path))}
    fast = prism_fast.compile(pipe, teacher, guidance=options | place, config={"level": "fast"})
    arguments: dict[str, Any] = {"num_inference_steps": 2, "seeds": [seed], "classes": 3, "output_type": "latent"}
    found = fast("a coat", **arguments)
    assert found.energies.isfinite().all()
    plain = prism_fast.compile(pipe)("a coat", num_inference_steps=2, seeds=[seed], output_type="latent")
    assert (found.images - plain.images).abs().max() > 1e-2
    with pytest.raises(UserError, match="madebyollin/taesd for"):  # at once, not at the first call
        prism_fast.compile(pipe, teacher, guidance=options, config={"level": "fast"})
