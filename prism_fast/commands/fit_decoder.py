"""``prism-fast fit-decoder``: the linear guidance decoder of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.calibration.config import FitDecoderConfig

    line = CommandLine(
        program="prism-fast fit-decoder",
        description=(
            "Fits the guidance decoder linear to a pipeline's own decodings of its own unguided latents, and keeps it "
            "in the cache for every pipeline with this autoencoder."
        ),
        kind=FitDecoderConfig,
        options=[Option(name="--force", description="fit again where a fit is kept", kind=bool, default=False)],
    )
    parsed = line.parse(arguments)
    config = build(FitDecoderConfig, parsed.fields)
    from prism_fast.calibration.decoder_fit import fit_decoder, fit_text
    from prism_fast.progress import progress

    print(fit_text(fit_decoder(config, progress, parsed.options["force"])))
