"""Imported once by the server that children start from, so that a child costs a fork and not half a minute."""

from __future__ import annotations

import diffusers
import PIL.Image
import pyarrow.parquet
import timm
import transformers

import prism_fast.synthesis.job

HEAVY = (
    diffusers.StableDiffusionPipeline,
    diffusers.DPMSolverMultistepScheduler,
    transformers.CLIPTextModel,
    transformers.CLIPTokenizer,
    timm.create_model,
    pyarrow.parquet,
    PIL.Image,
    prism_fast.synthesis.job,
)
"""diffusers and transformers import on first use."""
