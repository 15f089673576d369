from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import huggingface_hub.errors
import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.pipeline import load
from prism_fast.pipeline.load import is_xl, latent_shape, load_pipeline, pipeline_fingerprint
from tests.tiny import save_tiny_pipeline, save_tiny_xl_pipeline, tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("pipeline with space"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_saved_pipeline_comes_back(folder: Path) -> None:
    pipe, original = load_pipeline(str(folder)), tiny_pipeline(0)
    for name in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, name)
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
        expected = getattr(original, name).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())
    assert latent_shape(pipe) == (4, 8, 8)
    assert pipe.safety_checker is None


def test_dtypes(folder: Path) -> None:
    half = load_pipeline(str(folder), dtype=torch.float16)
    assert half.unet.dtype == half.text_encoder.dtype == torch.float16
    assert half.vae.dtype == torch.float32  # KL decoders overflow in fp16
    assert torch.equal(half.vae.decoder.conv_in.weight, tiny_pipeline(0).vae.decoder.conv_in.weight)
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}
    full, found = (
        made("a boot", generator=torch.Generator().manual_seed(0), **arguments).images
        for made in (load_pipeline(str(folder)), half)
    )
    torch.testing.assert_close(found, full, rtol=0, atol=0.05)
    assert half.vae.dtype == torch.float32
    assert load_pipeline(str(folder), dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_loading_leaves_the_libraries_progress_bars_as_they_were(folder: Path) -> None:
    from diffusers.utils import logging as diffusers_logging

    before = diffusers_logging.is_progress_bar_enabled()
    load_pipeline(str(folder))
    assert diffusers_logging.is_progress_bar_enabled() == before


def test_the_safety_checker_is_left_out_with_a_notice(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with caplog.at_level(logging.WARNING):
        assert load_pipeline(str(copy)).safety_checker is None
    assert "safety checker is not loaded" in caplog.text


def test_no_notice_where_there_is_no_safety_checker(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="prism_fast"):
        load_pipeline(str(folder))
    assert "safety checker" not in caplog.text


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_never_opened(copy: Path, component: str) -> None:
    for weights in (copy / component).glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=rf"{component}.*\.bin.*save_file"):
        load_pipeline(str(copy))


def test_missing_weights(copy: Path) -> None:
    next((copy / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        load_pipeline(str(copy))


def test_broken_folders_name_the_cure(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model_index"):
        load_pipeline(str(tmp_path))
    (copy / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match=r"component unet has no config\.json"):
        load_pipeline(str(copy))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(UserError, match=r"is a StableDiffusion3Pipeline: supported are .* StableDiffusionXLPipeline"):
        load_pipeline(str(copy))
    (copy / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        load_pipeline(str(copy))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="from_single_file"):
        load_pipeline(str(tmp_path / "model.safetensors"))


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean fashion"):
        load_pipeline("fashon")
    with pytest.raises(UserError, match="no such pipeline folder"):
        load_pipeline(str(tmp_path / "no" / "where"))
    monkeypatch.setitem(load.BUILT_IN, "fashion", "not/there")
    with pytest.raises(UserError, match="train it"):
        load_pipeline("fashion")


def refused_connection() -> Exception:
    """What the hub's client raises without a network, by its transport: requests, httpx or httpx2."""
    base = huggingface_hub.errors.HfHubHTTPError.__bases__[0]
    transport = sys.modules[base.__module__.split(".", maxsplit=1)[0]]
    kind = getattr(transport, "ConnectError", None) or transport.ConnectionError
    error: Exception = kind("no route to the hub")
    return error


def test_an_unreachable_hub_is_one_error_after_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unreachable(_self: object, repository: str, **kwargs: Any) -> None:
        asked.append(repository)
        assert kwargs["timeout"] <= 10
        raise refused_connection()

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(UserError, match=r"hub https?://.* cannot be reached \(.*no route.*\): connect to the network"):
        load_pipeline("org/name")
    assert asked == ["org/name"]


def test_without_the_hub_its_cache_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    def unreachable(*args: object, **kwargs: object) -> None:
        raise refused_connection()

    def cached(*args: object, local_files_only: bool, **kwargs: object) -> str:
        assert local_files_only
        return str(folder / "model_index.json")

    def downloaded(*args: object, local_files_only: bool, **kwargs: object) -> str:
        assert local_files_only and kwargs["use_safetensors"]
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    monkeypatch.setattr(StableDiffusionPipeline, "download", downloaded)
    assert pipeline_fingerprint(load_pipeline("org/name")) == pipeline_fingerprint(load_pipeline(str(folder)))


def test_a_hub_that_answers_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Response:
        headers: ClassVar[dict[str, str]] = {}
        request = None

    def unknown(*args: object, **kwargs: object) -> None:
        raise huggingface_hub.errors.RepositoryNotFoundError("404", response=Response())

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
    with pytest.raises(UserError, match=r"'org/name' is no local folder, and the hub has no such model.*spelling"):
        load_pipeline("org/name")
    monkeypatch.undo()
    with pytest.raises(UserError, match="no model of the hub is called so"):
        load_pipeline("org/a name")


def test_fingerprint_changes_with_what_decides_an_image(folder: Path) -> None:
    pipe = load_pipeline(str(folder))
    found = [pipeline_fingerprint(pipe), pipeline_fingerprint(load_pipeline(str(folder)))]
    assert len(found[0]) == 16 and found[0] == found[1]
    next(pipe.unet.parameters()).view(-1)[0] += 1e-6
    found.append(pipeline_fingerprint(pipe))
    pipe.scheduler.register_to_config(beta_end=0.013)
    found.append(pipeline_fingerprint(pipe))
    pipe.vae.register_to_config(scaling_factor=0.4)
    found.append(pipeline_fingerprint(pipe))
    pipe.tokenizer.add_tokens(["zebra"])
    found.append(pipeline_fingerprint(pipe))
    pipe.text_encoder.to(torch.bfloat16)
    found.append(pipeline_fingerprint(pipe))
    assert len(set(found)) == 6


def test_an_xl_is_loaded_and_its_second_encoder_counts(tmp_path: Path) -> None:
    pipe = load_pipeline(str(save_tiny_xl_pipeline(tmp_path)))
    assert is_xl(pipe) and not is_xl(tiny_pipeline(0)) and latent_shape(pipe) == (4, 8, 8)
    assert not pipe.text_encoder_2.training
    found = [pipeline_fingerprint(pipe), pipeline_fingerprint(load_pipeline(str(tmp_path)))]
    assert found[0] == found[1]
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    found.append(pipeline_fingerprint(pipe))
    pipe.text_encoder_2.text_projection.weight[0, 0] += 1e-6
    found.append(pipeline_fingerprint(pipe))
    pipe.tokenizer_2.add_tokens(["zebra"])
    found.append(pipeline_fingerprint(pipe))
    assert len(set(found)) == 4
    half = load_pipeline(str(tmp_path), dtype=torch.float16)
    assert half.text_encoder_2.dtype == torch.float16 and half.vae.dtype == torch.float32
