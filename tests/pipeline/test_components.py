"""A pipeline is loaded whole or not at all: whatever is missing, damaged or foreign is one error that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import load_decoder
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from tests.tiny import save_tiny_pipeline, tiny_pipeline

reads_tokenizer_json = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="version 4 makes CLIP's tokenizer from its vocabulary and merges"
)
NETWORKS = ("unet", "vae", "text_encoder")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def weights_of(component: Path) -> Path:
    return next(component.glob("*.safetensors"))


def change(component: Path, changed: Callable[[Tensors], Tensors]) -> None:
    file = weights_of(component)
    tensors = changed(load_file(file))
    file.unlink()  # the loaded tensors may be mapped from it
    save_file(tensors, file, metadata={"format": "pt"})


def refusal(pipeline: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_pipeline(str(pipeline))
    return str(caught.value)


def lose(tensors: Tensors) -> Tensors:
    return {name: tensors[name] for name in sorted(tensors)[1:]}


def lose_all(tensors: Tensors) -> Tensors:
    return {"x": torch.zeros(2)}


def gain(tensors: Tensors) -> Tensors:
    return tensors | {"foreign.weight": torch.zeros(2)}


def reshape(tensors: Tensors) -> Tensors:
    return tensors | {min(tensors): torch.zeros(3)}


@pytest.mark.parametrize("component", NETWORKS)
@pytest.mark.parametrize(
    ("changed", "fault"), [(lose, "missing"), (lose_all, "missing"), (gain, "unknown"), (reshape, "of another shape")]
)
def test_weights_that_are_not_those_of_the_network(
    copy: Path, component: str, changed: Callable[[Tensors], Tensors], fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The libraries would fill what is missing with random numbers."""
    first = min(load_file(weights_of(copy / component)))
    change(copy / component, changed)
    capfd.readouterr()
    message = refusal(copy)
    assert component in message and fault in message and "again" in message
    key = "foreign.weight" if changed is gain else first
    assert key.removeprefix("text_model.") in message or changed is lose_all
    assert len(message) < 600
    assert "".join(capfd.readouterr()) == ""  # no report of a library beside the error


def test_a_tiny_decoder_lacks_a_weight(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(tmp_path)
    change(tmp_path, lose)
    with pytest.raises(UserError, match=r"tiny decoder.*1 tensor \(.*\) missing"):
        load_decoder(tiny_pipeline(0), "tiny", tmp_path)


@pytest.mark.parametrize("component", NETWORKS)
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no safetensors" * 400])
def test_damaged_weights(copy: Path, component: str, damage: Callable[[bytes], bytes]) -> None:
    file = weights_of(copy / component)
    content = damage(file.read_bytes())
    file.unlink()
    file.write_bytes(content)
    message = refusal(copy)
    assert component in message and "cut or no safetensors file" in message


@pytest.mark.parametrize("component", [*NETWORKS, "scheduler"])
@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "is missing"), ("{not json", "not valid JSON"), ("[1, 2]", "JSON list"), ("[" * 100_000, "not valid JSON")],
)
def test_damaged_configurations(copy: Path, component: str, text: str | None, words: str) -> None:
    config = next((copy / component).glob("*config.json"))
    config.unlink()
    if text is not None:
        config.write_text(text)
    message = refusal(copy)
    assert component in message and words in message


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"block_out_channels": 3}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"down_block_types": ["NoSuchBlock", "CrossAttnDownBlock2D"]}),
        ("vae/config.json", {"layers_per_block": "two"}),
        ("text_encoder/config.json", {"num_attention_heads": 5}),
        ("text_encoder/config.json", {"hidden_size": "big"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "no such"}),
        pytest.param("tokenizer/tokenizer.json", {"model": {}}, marks=reads_tokenizer_json),
    ],
)
def test_settings_that_no_library_can_use(copy: Path, file: str, changes: dict[str, Any]) -> None:
    path = copy / file
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | changes))
    message = refusal(copy)
    assert file.split("/", maxsplit=1)[0] in message and "again" in message


def test_an_empty_configuration(copy: Path) -> None:
    for component in NETWORKS:
        kept = (copy / component / "config.json").read_text()
        (copy / component / "config.json").write_text("{}")
        message = refusal(copy)
        assert component in message
        (copy / component / "config.json").write_text(kept)


def test_a_pipeline_without_a_usable_tokenizer(copy: Path) -> None:
    kept = Path(shutil.copytree(copy / "tokenizer", copy.parent / "kept"))
    for path in (copy / "tokenizer").iterdir():
        path.write_text("{")
    assert "tokenizer" in refusal(copy)
    shutil.rmtree(copy / "tokenizer")
    assert "component tokenizer has none of" in refusal(copy)
    shutil.copytree(kept, copy / "tokenizer")
    other = tiny_pipeline(0).tokenizer
    other.add_tokens(["zebra"])
    other.save_pretrained(copy / "tokenizer")
    assert "belong to different pipelines" in refusal(copy)


@pytest.mark.parametrize(
    "entry", [["os", "system"], ["diffusers", "AutoencoderNone"], ["diffusers", "DDIMScheduler"], 3]
)
def test_only_networks_of_the_two_libraries(copy: Path, entry: Any) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"unet": entry}))
    assert "unet" in refusal(copy)
    (copy / "model_index.json").write_text(json.dumps({key: index[key] for key in index if key != "vae"}))
    assert "names None as vae" in refusal(copy)


def test_weights_under_older_names_are_the_same_pipeline(folder: Path, copy: Path) -> None:
    """Stable Diffusion 1.5's own files: text weights under ``text_model``, with position ids; old attention names."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older_vae(tensors: Tensors) -> Tensors:
        renamed = {}
        for name, tensor in tensors.items():
            for new, former in old.items() if "attentions" in name else ():
                name = name.replace(f".{new}.", f".{former}.")
            renamed[name] = tensor
        assert set(renamed) != set(tensors)
        return renamed

    def older_text(tensors: Tensors) -> Tensors:
        prefixed = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
        return prefixed | {"text_model.embeddings.position_ids": torch.arange(24)[None]}

    def newer_text(tensors: Tensors) -> Tensors:
        return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}

    expected = pipeline_fingerprint(load_pipeline(str(folder)))
    change(copy / "vae", older_vae)
    change(copy / "text_encoder", older_text)
    assert pipeline_fingerprint(load_pipeline(str(copy))) == expected
    change(copy / "text_encoder", newer_text)
    assert pipeline_fingerprint(load_pipeline(str(copy))) == expected


def test_a_half_precision_variant_alone_is_read(copy: Path) -> None:
    for component in NETWORKS:
        change(copy / component, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
        file = weights_of(copy / component)
        file.rename(file.with_suffix(".fp16.safetensors"))
    pipe, original = load_pipeline(str(copy)), tiny_pipeline(0)
    for component in NETWORKS:
        expected = getattr(original, component).state_dict()
        for name, tensor in getattr(pipe, component).state_dict().items():
            assert torch.equal(tensor, expected[name].half().float())


def test_shards_are_read_and_none_may_be_missing(folder: Path, copy: Path) -> None:
    pipe = tiny_pipeline(0)
    for component in NETWORKS:
        shutil.rmtree(copy / component)
        getattr(pipe, component).save_pretrained(copy / component, max_shard_size="200KB", safe_serialization=True)
    (copy / "vae" / "other.safetensors").write_bytes(b"is not read")
    assert pipeline_fingerprint(load_pipeline(str(copy))) == pipeline_fingerprint(load_pipeline(str(folder)))
    shard = sorted((copy / "unet").glob("*-of-*.safetensors"))[0]
    shard.rename(copy / "shard")
    assert f"({shard.name})" in refusal(copy)
    (copy / "shard").rename(shard)
    index = next((copy / "unet").glob("*.index.json"))
    index.write_text(json.dumps({"weight_map": ["a"]}))
    assert "maps no weights to files" in refusal(copy)


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    load_pipeline(str(folder))
    assert torch.equal(torch.get_rng_state(), before)
