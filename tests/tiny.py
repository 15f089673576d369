"""Random-weight pipelines and teachers that fit in a test: the file formats of the real ones, 0.3 M parameters.

Images are 32x32, latents 4x8x8. The tokenizer has every word of the ``fashion`` captions as one token (others fall
back to letters) and ``model_max_length`` 24, like the built-in pipeline's.
"""

from __future__ import annotations

import itertools
import json
import re
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prism_fast.zoo import fashion_captions

IMAGE_SIZE = 32
MAX_LENGTH = 24
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights from ``seed``; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _caption_words() -> list[str]:
    texts = [*fashion_captions.NAMES, *fashion_captions.GLOSSES, *fashion_captions.OTHER_SENSES.values()]
    texts += [*fashion_captions.STYLES.values(), "of a"]
    texts += [word for words in fashion_captions.ATTRIBUTES.values() for word in words]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text)})


def _bpe(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The pieces of ``word`` under ``ranks`` (lowest rank merges first), as CLIP's tokenizer finds them."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = [pair for pair in itertools.pairwise(pieces) if pair in ranks]
        if not pairs:
            break
        best = min(pairs, key=ranks.__getitem__)
        index = list(itertools.pairwise(pieces)).index(best)
        pieces[index : index + 2] = ["".join(best)]
    return pieces


def tiny_tokenizer() -> Any:
    """A ``CLIPTokenizer`` whose whole words are those of the fashion captions."""
    from transformers import CLIPTokenizer

    ranks: dict[tuple[str, str], int] = {}
    for word in _caption_words():
        # Later merges have lower priority, so words that are whole already stay whole.
        pieces = _bpe(word, ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces[:2] = [pieces[0] + pieces[1]]
    letters = [*string.ascii_lowercase, *string.digits, *",.-'"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in ranks), _BOS, _EOS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary))
        merges = "\n".join(" ".join(pair) for pair in ranks)
        Path(folder, "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)


_VAE: dict[str, Any] = {
    "sample_size": IMAGE_SIZE, "latent_channels": 4, "block_out_channels": (8, 16, 16), "layers_per_block": 1,
    "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    "scaling_factor": 0.5,
}  # fmt: skip
_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}  # fmt: skip


def _text_config(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=32,
    )  # fmt: skip


def tiny_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> Any:
    """A ``StableDiffusionPipeline`` with random weights, in fp32 on the CPU, eval mode, without gradients.

    Args:
        seed: of the weights; the same seed gives the same weights.
        prediction_type: what the UNet's output is taken for: ``epsilon``, ``v_prediction`` or ``sample``.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer = tiny_tokenizer()
    with _seeded(seed):
        text_encoder = CLIPTextModel(_text_config(tokenizer))
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
            cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(**_VAE)
    scheduler = DDIMScheduler(**_SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type)
    for module in (text_encoder, unet, vae):
        module.eval().requires_grad_(False)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_xl_pipeline(seed: int = 0) -> Any:
    """A ``StableDiffusionXLPipeline`` with random weights, two text encoders and a UNet of three levels, the outermost
    without attention, as the real one's. As :func:`tiny_pipeline`."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer()
    with _seeded(seed):
        first, second = (kind(_text_config(tokenizer)) for kind in (CLIPTextModel, CLIPTextModelWithProjection))
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32, 32), layers_per_block=1,
            cross_attention_dim=64, attention_head_dim=8, norm_num_groups=8, use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        )  # fmt: skip
        vae = AutoencoderKL(**_VAE)
    for module in (first, second, unet, vae):
        module.eval().requires_grad_(False)
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=EulerDiscreteScheduler(**_SCHEDULE), add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny_pipeline(folder: str | Path, seed: int = 0) -> Path:
    """Writes :func:`tiny_pipeline` in diffusers format (safetensors) and returns the folder."""
    tiny_pipeline(seed).save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def save_tiny_xl_pipeline(folder: str | Path, seed: int = 0) -> Path:
    """Writes :func:`tiny_xl_pipeline` as :func:`save_tiny_pipeline` does."""
    tiny_xl_pipeline(seed).save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def save_tiny_decoder(folder: str | Path, seed: int = 0, channels: int = 4) -> Path:
    """Writes a random ``AutoencoderTiny`` for latents of :func:`tiny_pipeline` in diffusers format."""
    from diffusers import AutoencoderTiny

    with _seeded(seed):
        made = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1), latent_channels=channels,
        )  # fmt: skip
    made.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def save_tiny_teacher(
    folder: str | Path, num_classes: int = 10, seed: int = 0, architecture: str = "resnet10t", size: int = IMAGE_SIZE
) -> Path:
    """Writes a random classifier in timm's local-dir format (``config.json``, ``model.safetensors``).

    Its batch-norm statistics are set from random images and its logits spread, so that energies differ between images.
    """
    import timm
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model_args = {"channels": [8, 8, 16, 16], "stem_width": 8} if architecture == "resnet10t" else {}
    with _seeded(seed):
        model = timm.create_model(architecture, num_classes=num_classes, **model_args)
        model.train()
        with torch.no_grad():
            for _ in range(8):
                model((torch.rand(32, 3, size, size) - 0.5) / 0.25)
            model.get_classifier().weight.normal_(0.0, 1.0)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    config = {
        "architecture": architecture, "num_classes": num_classes, "num_features": model.num_features,
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, size, size], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
            "interpolation": "bilinear", "crop_pct": 1.0, "num_classes": num_classes,
            "label_names": [f"class {index}" for index in range(num_classes)],
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder
