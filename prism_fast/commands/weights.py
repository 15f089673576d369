"""The flag ``--weights`` of every command that takes ``--teacher``."""

from __future__ import annotations

from prism_fast.recipes.command_line import Option, Parsed

WEIGHTS = Option(
    name="--weights",
    description="safetensors file, or imported folder, of a teacher module:factory; short for --teacher NAME@FILE",
    metavar="FILE",
)


def add_weights(parsed: Parsed) -> None:
    """Puts ``--weights`` into the setting ``teacher``, so that it is saved, hashed and passed on with it.

    Raises:
        UserError: the teacher has weights of its own.
    """
    if parsed.options["weights"] is None:
        return
    from prism_fast.teachers.own import with_weights

    teacher: str = parsed.fields["teacher"]
    if "teacher" not in parsed.given:  # a file's, whose weights the flag replaces as flags do
        teacher = teacher.partition("@")[0]
    parsed.fields["teacher"] = with_weights(teacher, parsed.options["weights"])
