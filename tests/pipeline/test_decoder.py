from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import (
    LatentDecoder,
    _fetched_tiny,
    decode,
    decoder_fingerprint,
    load_decoder,
    to_uint8,
)
from prism_fast.pipeline.linear_fit import (
    fit_linear,
    fit_quality,
    linear_file,
    linear_record,
    load_linear,
    save_linear,
)
from prism_fast.pipeline.load import load_pipeline
from tests.tiny import save_tiny_decoder, save_tiny_pipeline, tiny_pipeline, tiny_xl_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


def _latents(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_kl_is_the_pipelines_own_decoding(pipe: Any, seed: int) -> None:
    latents = _latents(seed)
    images = decode(load_decoder(pipe), latents)
    raw = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    expected = pipe.image_processor.postprocess(raw, output_type="np")
    assert torch.equal(images, torch.from_numpy(expected).permute(0, 3, 1, 2))
    pil = pipe.image_processor.postprocess(raw, output_type="pil")
    stored = to_uint8(images).permute(0, 2, 3, 1)
    assert (stored[0].numpy() == np.asarray(pil[0])).all()


def test_the_backward_agrees_with_fp64_differences(seed: int) -> None:
    pipe = tiny_pipeline(0)
    pipe.vae.double()
    decoder = load_decoder(pipe)
    latents = _latents(seed).double().requires_grad_()
    weight = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((decode(decoder, latents) * weight).sum(), latents)
    direction = torch.randn_like(latents)
    with torch.no_grad():
        values = [(decode(decoder, latents + h * direction) * weight).sum() for h in (1e-6, -1e-6)]
    slope = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-4)


def test_images_are_clamped_and_the_gradient_is_zero_outside(pipe: Any, seed: int) -> None:
    latents = (60 * _latents(seed)).requires_grad_()
    images = decode(load_decoder(pipe), latents)
    assert images.min() >= 0 and images.max() <= 1
    outside = (images <= 0) | (images >= 1)
    assert outside.any()
    (gradient,) = torch.autograd.grad((images * outside).sum(), latents)
    assert not gradient.any()


def test_half_precision_decoders_give_fp32_images(seed: int) -> None:
    pipe = tiny_pipeline(0)
    pipe.vae.to(torch.bfloat16)
    assert decode(load_decoder(pipe), _latents(seed)).dtype == torch.float32


def testsave_tiny_decoder(pipe: Any, tmp_path: Path, seed: int) -> None:
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny.from_pretrained(save_tiny_decoder(tmp_path), use_safetensors=True)
    decoder = load_decoder(pipe, "tiny", tmp_path)
    assert decoder.name == "tiny"
    latents = _latents(seed)
    expected = (tiny.eval().decode(latents).sample / 2 + 0.5).clamp(0, 1).detach()
    torch.testing.assert_close(decode(decoder, latents), expected)
    next(tmp_path.glob("*.safetensors")).rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"\.bin"):
        load_decoder(pipe, "tiny", tmp_path)


def test_unknown_and_missing_decoders(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kl"):
        load_decoder(pipe, "k1")
    with pytest.raises(UserError, match=r"no tiny decoder.*guidance\.tiny.*madebyollin/taesd for.*madebyollin/taesdxl"):
        load_decoder(pipe, "tiny", tmp_path)
    pipe = tiny_pipeline(0)
    pipe.register_to_config(_name_or_path=str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path}/vae_tiny: set guidance\.tiny"):
        load_decoder(pipe, "tiny@16")
    pipe.vae.save_pretrained(tmp_path / "vae_tiny")
    with pytest.raises(UserError, match="is a AutoencoderKL, not an AutoencoderTiny: set"):
        load_decoder(pipe, "tiny")
    with pytest.raises(UserError, match="has 3 latent channels, not 4"):
        load_decoder(pipe, "tiny", save_tiny_decoder(tmp_path / "other", channels=3))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """A hub of one model, ``org/tiny``; what is asked of it."""
    asked: list[tuple[str, Any]] = []

    def fetch(repository: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repository, local_files_only))
        kept = [path for path in (tmp_path / "hub").iterdir() if any(path.match(name) for name in allow_patterns)]
        place = tmp_path / f"snapshot{len(asked)}"
        place.mkdir()
        for path in kept:
            shutil.copy(path, place)
        return str(place)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    save_tiny_decoder(tmp_path / "hub", seed=3)
    _fetched_tiny.cache_clear()
    yield asked
    _fetched_tiny.cache_clear()


def test_a_tiny_decoder_from_the_hub(pipe: Any, hub: list[tuple[str, Any]], tmp_path: Path, seed: int) -> None:
    latents = _latents(seed)
    expected = decode(load_decoder(pipe, "tiny", tmp_path / "hub"), latents)
    for name in ("tiny", "tiny@32"):
        torch.testing.assert_close(decode(load_decoder(pipe, name, "org/tiny"), latents), expected)
    assert hub == [("org/tiny", False)]  # asked once
    with pytest.raises(UserError, match="no tiny decoder"):
        load_decoder(pipe, "tiny", "./org/tiny")


def test_a_tiny_decoder_on_the_hub_is_never_unpickled(pipe: Any, hub: list[tuple[str, Any]], tmp_path: Path) -> None:
    (weights,) = (tmp_path / "hub").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"has no \*\.safetensors weights"):
        load_decoder(pipe, "tiny", "org/tiny")
    assert not list((tmp_path / "snapshot1").glob("*.bin"))


def test_without_the_hub_its_cache_serves_a_tiny_decoder(
    pipe: Any, hub: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    assert load_decoder(pipe, "tiny", "org/tiny").name == "tiny" and hub == [("org/tiny", True)]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"tiny decoder 'org/other' is no local folder.*no route.*give a local folder"):
        load_decoder(pipe, "tiny", "org/other")


def test_decoders_have_fingerprints_of_what_they_are(fitted: Any, tmp_path: Path) -> None:
    assert decoder_fingerprint(fitted, "kl") is decoder_fingerprint(fitted, "kl@16") is None
    places = [save_tiny_decoder(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    one, same, other = (decoder_fingerprint(fitted, "tiny", place) for place in places)
    assert one == same == decoder_fingerprint(fitted, "tiny@16", str(places[0])) != other
    before = decoder_fingerprint(fitted, "linear")
    weight, bias = load_linear(fitted)
    save_linear(fitted, weight, bias, {"images": 3})  # the same matrix
    assert decoder_fingerprint(fitted, "linear") == before
    save_linear(fitted, weight, bias + 1e-3)
    assert len({decoder_fingerprint(fitted, "linear"), before, one, other, None}) == 5


def test_a_fit_belongs_to_an_autoencoder(tmp_path: Path) -> None:
    """Whatever draws the latents, and whoever loaded the pipeline; in each dtype its own."""
    from diffusers import EulerDiscreteScheduler

    folder = save_tiny_pipeline(tmp_path)
    pipe = load_pipeline(str(folder))
    place = linear_file(pipe)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    next(pipe.unet.parameters()).view(-1)[0] += 1  # as a LoRA does
    next(pipe.text_encoder.parameters()).view(-1)[0] += 1
    pipe.unet.register_to_config(sample_size=16)
    assert linear_file(pipe) == place
    for dtype in (torch.float16, torch.bfloat16):
        loaded, own = load_pipeline(str(folder), dtype=dtype), tiny_pipeline(0).to(dtype)
        assert linear_file(loaded) == linear_file(own) != place
    pipe.vae.register_to_config(scaling_factor=0.4)
    rescaled = linear_file(pipe)
    pipe.vae.decoder.conv_in.weight.view(-1)[0] += 1
    assert len({place, rescaled, linear_file(pipe)}) == 3


def test_a_fit_keeps_what_it_was_fitted_to(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path))
    record = {"images": 3, "scheduler": "euler", "steps": 4, "cfg_scale": 1.0, "seed": 0, "pipeline": "0" * 16}
    file = save_linear(pipe, torch.ones(3, 4), torch.zeros(3), record)
    assert linear_record(file) == record
    content = file.read_bytes()
    assert save_linear(pipe, torch.ones(3, 4), torch.zeros(3), record).read_bytes() == content


def test_an_sdxl_has_no_linear_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="fit-decoder does not take an SDXL"):
        load_decoder(tiny_xl_pipeline(0), "linear")


def test_rounding_is_half_to_even() -> None:
    # diffusers rounds with numpy, half to even
    values = torch.tensor([0.0, 0.5 / 255, 1.5 / 255, 1.0], dtype=torch.float64)
    assert to_uint8(values).tolist() == [0, 0, 2, 255]


def _slope_error(decoder: LatentDecoder, latents: torch.Tensor, seed: int) -> torch.Tensor:
    """Relative error of the backward against a central difference along a random direction, all in fp64.

    Of the raw output: a random decoder may leave [0, 1] everywhere, and a clamped image has no slope.
    """
    source = torch.Generator().manual_seed(seed)
    latents = latents.double().requires_grad_()
    images = decoder.raw(latents)
    weight = torch.randn(images.shape, generator=source, dtype=torch.float64)
    direction = torch.randn(latents.shape, generator=source, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((images * weight).sum(), latents)
    with torch.no_grad():
        up, down = ((decoder.raw(latents + h * direction) * weight).sum() for h in (1e-6, -1e-6))
    slope = (up - down) / 2e-6
    return ((gradient * direction).sum() - slope).abs() / gradient.norm() / direction.norm()


@pytest.fixture
def fitted(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline with a fit of its own, in a cache of its own."""
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    source = torch.Generator().manual_seed(5)
    save_linear(pipe, 0.1 * torch.randn(3, 4, generator=source), torch.full((3,), 0.5))
    return pipe


def test_at_full_size_a_resized_decoder_is_the_decoder_itself(pipe: Any, tmp_path: Path, seed: int) -> None:
    tiny, latents = save_tiny_decoder(tmp_path), _latents(seed)
    for name in ("kl", "tiny"):
        whole, resized = (load_decoder(pipe, spelled, tiny) for spelled in (name, f"{name}@32"))
        assert resized.name == f"{name}@32"
        torch.testing.assert_close(decode(resized, latents), decode(whole, latents), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pixels", [4, 16, 20, 28])
def test_a_resized_decoder_has_that_many_pixels(pipe: Any, tmp_path: Path, pixels: int, seed: int) -> None:
    for name in ("kl", "tiny"):
        decoder = load_decoder(pipe, f"{name}@{pixels}", save_tiny_decoder(tmp_path))
        assert decode(decoder, _latents(seed)).shape == (3, 3, pixels, pixels)


def test_the_longer_side_is_resized_and_the_shape_kept(pipe: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe.unet, "_internal_dict", {**pipe.unet.config, "sample_size": [8, 16]})
    monkeypatch.setattr(type(pipe.unet), "config", property(lambda unet: _Attributes(unet._internal_dict)))
    wide = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(seed))
    assert decode(load_decoder(pipe, "kl@32"), wide).shape == (2, 3, 16, 32)
    with pytest.raises(UserError, match="do not fit latents of 8x16"):
        load_decoder(pipe, "kl@12")


class _Attributes(dict[str, Any]):
    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("name", ["kl@16", "kl@32", "tiny", "tiny@16", "linear"])
def test_the_backward_of_every_decoder(name: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    pipe = tiny_pipeline(0)
    pipe.vae.double()
    save_linear(pipe, 0.02 * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)), torch.full((3,), 0.5))
    decoder = load_decoder(pipe, name, save_tiny_decoder(tmp_path / "tiny"))
    # the median: a difference across a ReLU's or the clamp's kink is no slope
    errors = [float(_slope_error(decoder, _latents(seed), seed + trial)) for trial in range(1, 6)]
    assert statistics.median(errors) < 1e-5


def test_a_linear_decoder_is_an_affine_map(fitted: Any, seed: int) -> None:
    decoder, latents = load_decoder(fitted, "linear"), 0.1 * _latents(seed)
    weight, bias = load_linear(fitted)
    images = decode(decoder, latents)
    assert images.shape == (3, 3, 8, 8) and decoder.name == "linear"
    torch.testing.assert_close(images[1, :, 2, 5], weight @ latents[1, :, 2, 5] + bias)


def test_a_fit_recovers_a_known_matrix(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    # bounded, so that no colour is clipped: 4 · 0.048 · 2 < 0.4
    weight, bias = 0.04 * torch.randn(3, 4, generator=source).clamp(-1.2, 1.2), torch.tensor([0.4, 0.5, 0.6])
    latents = torch.randn(8, 4, 8, 8, generator=source).clamp(-2, 2)
    colours = torch.einsum("rc,bchw->brhw", weight, latents) + bias.view(1, 3, 1, 1)
    images = to_uint8(colours.clamp(0, 1))  # one pixel a latent pixel: shrinking changes nothing
    found, offset = fit_linear(latents, images)
    torch.testing.assert_close(found, weight, rtol=0, atol=2e-3)
    torch.testing.assert_close(offset, bias, rtol=0, atol=2e-3)
    explained, error = fit_quality(latents, images, found, offset)
    assert (explained > 0.99).all() and (error < 2e-3).all()
    assert torch.equal(fit_linear(latents, images)[0], found)


def test_fits_that_are_refused(fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="take more"):
        fit_linear(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="have to be finite"):
        fit_linear(torch.full((1, 4, 8, 8), torch.nan), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    linear_file(fitted).write_bytes(b"cut")
    with pytest.raises(UserError, match="is damaged"):
        load_decoder(fitted, "linear")
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="fit-decoder --pipeline NAME --dtype float32"):
        load_decoder(fitted, "linear")


@pytest.mark.parametrize("name", ["kl@", "kl@0", "kl@x", "kl@016", "linear@8", "tiny@-4", "kl@²", ""])
def test_names_that_are_no_decoder(pipe: Any, name: str) -> None:
    with pytest.raises(UserError, match="decoder"):
        load_decoder(pipe, name)


@pytest.mark.parametrize("pixels", [13, 36, 2])
def test_sizes_that_do_not_fit(pipe: Any, pixels: int) -> None:
    with pytest.raises(UserError, match="take a multiple of 4 up to 32"):
        load_decoder(pipe, f"kl@{pixels}")
