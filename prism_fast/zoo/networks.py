"""The architectures of the built-in world, at their pinned sizes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from prism_fast.prompts.clip_tokens import merge
from prism_fast.zoo.fashion_captions import ATTRIBUTES, DIGITS, GLOSSES, NAMES, OTHER_SENSES, STYLES, caption

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from diffusers.schedulers import DDIMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

IMAGE_SIZE = 32
LATENT_CHANNELS = 4
LATENT_SIZE = 8
TEXT_WIDTH = 96
MAX_LENGTH = 24


def build_vae() -> AutoencoderKL:
    """AutoencoderKL (32, 64, 64): 3x32x32 images to 4x8x8 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=IMAGE_SIZE,
    )


def build_tiny_vae() -> AutoencoderTiny:
    """AutoencoderTiny with 16 channels; only its decoder is trained and used."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        in_channels=3,
        out_channels=3,
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


def build_unet() -> UNet2DConditionModel:
    """UNet (48, 96), one layer a block, on 4x8x8 latents."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(vocabulary_size: int) -> CLIPTextModel:
    """A two-layer CLIP text model, trained together with the UNet."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=vocabulary_size - 2,
            eos_token_id=vocabulary_size - 1,
            pad_token_id=vocabulary_size - 1,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with velocity prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def caption_words() -> list[str]:
    """Every word of the caption language, sorted."""
    texts = [caption(name, gloss=gloss) for name, gloss in zip(NAMES, GLOSSES, strict=True)]
    texts += list(OTHER_SENSES.values()) + [f"{style} of a" for style in STYLES.values()]
    texts += [" ".join(words) for words in ATTRIBUTES.values()] + [f"the digit {word}" for word in DIGITS]
    return sorted({word for text in texts for word in text.replace(",", " ").split()})


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes a CLIP byte-pair vocabulary in which every caption word is one token, and loads it.

    Every letter stays a token of its own, so that any other text can be encoded too, at about a token a syllable.
    """
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"
    merges = byte_pair_merges([(*word[:-1], f"{word[-1]}</w>") for word in caption_words()])
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def byte_pair_merges(words: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) in order, until each word is a single token."""
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in words):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [merge(word, best) for word in words]
    return merges
