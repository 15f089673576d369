"""The flag ``--batch`` of every command that samples."""

from __future__ import annotations

from prism_fast.errors import UserError
from prism_fast.recipes.command_line import Option, Parsed

BATCH = Option(name="--batch", description="short for --sampler.compute_batch", kind=int, metavar="B")


def add_batch(parsed: Parsed) -> None:
    """Puts ``--batch`` into the setting ``sampler.compute_batch``.

    Raises:
        UserError: both are given.
    """
    batch = parsed.options["batch"]
    if batch is None:
        return
    if "sampler.compute_batch" in parsed.given:
        raise UserError("--batch and --sampler.compute_batch are the same setting: give one of them")
    parsed.fields["sampler"]["compute_batch"] = batch
