"""``prism-fast student``: what there is to do before and after a student's training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prism_fast.commands.subcommands import Subcommands, run_subcommand
from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: unknown subcommand, or what the subcommand refuses.
    """
    run_subcommand("student", _SUBCOMMANDS, arguments)


def _export(arguments: Sequence[str]) -> None:
    line = CommandLine(
        program="prism-fast student export",
        description="Writes a student as an ONNX model or a program of torch.export: images in [0, 1] to logits.",
        options=[
            Option(name="student", description="folder of a distillation or of a student, or as --teacher takes it"),
            Option(name="--out", description="the file, .onnx or .pt2", metavar="FILE"),
            Option(name="--format", description="onnx or torch; default: what the file's name ends in"),
        ],
    )
    options = line.parse(arguments).options
    if options["student"] is None or options["out"] is None:
        raise UserError("student export needs a student and a file: prism-fast student export FOLDER --out s.onnx")
    from prism_fast.distill.export import FORMATS, export_student
    from prism_fast.distill.report import STUDENT
    from prism_fast.teachers.load import load_classifier

    name, path = options["student"], Path(options["out"]).expanduser()
    form = options["format"] or next((form for form, suffix in FORMATS.items() if path.suffix == suffix), path.suffix)
    inner = Path(name).expanduser() / STUDENT
    student = load_classifier(str(inner) if inner.is_dir() else name)
    export_student(student, form, path)
    height, width = student.input_size
    print(f"{path}: images [B, 3, {height}, {width}] in [0, 1] to logits [B, {student.num_classes}]")


def _views(arguments: Sequence[str]) -> None:
    from prism_fast.distill.views_config import ViewsConfig

    line = CommandLine(
        program="prism-fast student views",
        description="Has the teacher label views of every image; distill --targets views then needs no teacher.",
        kind=ViewsConfig,
        options=[WEIGHTS],
    )
    parsed = line.parse(arguments)
    add_weights(parsed)
    config = build(ViewsConfig, parsed.fields)
    from prism_fast.distill.label_views import label_views
    from prism_fast.progress import progress

    path = label_views(config, progress=progress)
    print(f"{path}: {config.augment.views} views of every image; distill with --targets views --views {path}")


_SUBCOMMANDS: Subcommands = {
    "export": ("a student as ONNX model or torch.export program", _export),
    "views": ("the teacher's labels of stored views", _views),
}
