"""``prism-fast teacher import``: pickled weights to a teacher's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Option

if TYPE_CHECKING:
    from prism_fast.teachers.importing import Imported


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    line = CommandLine(
        program="prism-fast teacher import",
        description=(
            "Reads the tensors of a file that torch.save wrote, runs none of its code, and writes them as safetensors "
            "into a new folder: with --architecture a teacher, else weights with a teacher.yaml to fill in."
        ),
        options=[
            Option(name="file", description="state dict, alone or in a checkpoint (.pt, .pth, .bin, .ckpt)"),
            Option(name="--out", description="folder to make", metavar="FOLDER"),
            Option(name="--architecture", description="timm's name of the network", metavar="NAME"),
        ],
    )
    options = line.parse(arguments).options
    if options["file"] is None or options["out"] is None:
        raise UserError("teacher import needs a file and a folder: prism-fast teacher import x.pt --out FOLDER")
    from prism_fast.teachers.importing import import_teacher

    source, out = Path(options["file"]).expanduser(), Path(options["out"]).expanduser()
    print(_told(import_teacher(source, out, options["architecture"])))


def _told(made: Imported) -> str:
    count = sum(tensor.numel() for tensor in made.state.tensors.values())
    origin = f", from under {made.state.wrapper!r}" if made.state.wrapper else ""
    left_out = f" (not read: {', '.join(made.state.left_out)})" if made.state.left_out else ""
    lines = [f"{made.folder}: {len(made.state.tensors)} tensors of {count} numbers{origin}{left_out}"]
    if made.input_size is None:
        lines += [
            f"fill in {made.folder / 'teacher.yaml'}, then use",
            f"  --teacher package.module:factory --weights {made.folder}",
        ]
    else:
        height, width = made.input_size
        lines += [
            f"{made.num_classes} classes, input {height}x{width}; mean and std are timm's for this name: "
            f"where training used others, correct {made.folder / 'config.json'}",
            f"  --teacher {made.folder}",
        ]
    return "\n".join(lines)
