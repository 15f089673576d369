"""``prism-fast prompts``: a prompt list, and its settings beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.config import canonical, check_new_file, save_yaml
from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build, read_fields

if TYPE_CHECKING:
    from prism_fast.prompts import PromptList


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.prompts.prompt_config import PromptConfig

    line = CommandLine(
        program="prism-fast prompts",
        description="Writes a prompt list: for each class what the generator is told, and how that came about.",
        kind=PromptConfig,
        recipe_group="prompts",
        options=[
            Option(
                name="--vocabulary",
                description="the classes: fashion, or a .csv, .json or .yaml file",
                default="fashion",
            ),
            Option(name="--recipe", description="take the kind of prompts from this recipe"),
            Option(name="--pipeline", description="cut prompts to what this pipeline's tokenizer takes"),
            Option(name="--out", description="parquet file to write", metavar="FILE", default="prompts.parquet"),
        ],
    )
    parsed = line.parse(arguments)
    config, options = build(PromptConfig, parsed.fields), parsed.options
    out = Path(options["out"])
    if out.suffix != ".parquet":
        raise UserError(f"--out takes the name of a .parquet file, not {options['out']!r}")
    if not out.is_file():
        check_new_file(out)
    from prism_fast.prompts import build_prompts, load_vocabulary, sample_text

    vocabulary = load_vocabulary(options["vocabulary"])
    fits = None
    if options["pipeline"] is not None:
        from prism_fast.pipeline.load import load_pipeline
        from prism_fast.pipeline.text import prompt_fits

        fits = prompt_fits(load_pipeline(options["pipeline"]))
    prompts = build_prompts(vocabulary, config, fits)
    written = _save_prompts(prompts, {**options, **canonical(config)}, out)
    print(sample_text(prompts, vocabulary))
    print(
        f"\nwrote {len(prompts)} prompts to {out}" if written else f"\n{out} holds these {len(prompts)} prompts already"
    )


def _save_prompts(prompts: PromptList, settings: dict[str, Any], out: Path) -> bool:
    """The list and, beside it, its settings; whether anything had to be written.

    Raises:
        UserError: a file of something else is in the way of either; nothing was touched.
    """
    beside = out.with_name(f"{out.name}.config.yaml")
    missing = [not path.is_symlink() and not path.exists() for path in (out, beside)]
    for path, holds in (
        (out, missing[0] or _holds_prompts(out, prompts)),
        (beside, missing[1] or _holds_settings(beside, settings)),
    ):
        if not holds:
            raise UserError(
                f"{path} exists and holds something else than these prompts: give another --out, or move it away"
            )
    if missing[0]:
        prompts.save(out)
    if missing[1]:
        save_yaml(settings, beside)
    return any(missing)


def _holds_prompts(path: Path, prompts: PromptList) -> bool:
    from prism_fast.prompts import PromptList

    try:
        return PromptList.load(path) == prompts
    except UserError:  # no list of prompts at all
        return False


def _holds_settings(path: Path, settings: dict[str, Any]) -> bool:
    try:
        found = read_fields(path)
    except UserError:  # no settings at all
        return False
    # The same place may be written in several ways.
    return {**found, "out": settings["out"]} == settings
