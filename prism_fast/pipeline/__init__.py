"""A diffusers pipeline, loaded safely, and its parts: prompt encoding, latent decoders, fingerprint."""

from __future__ import annotations
