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
                description="the classes: a built-in list, a .csv, .json, .yaml or .txt file, or a folder",
                default="fashion",
            ),
            Option(name="--recipe", description="take the kind of prompts from this recipe"),
            Option(name="--pipeline", description="cut prompts to what this pipeline's tokenizer takes, not CLIP's"),
            Option(name="--inspect", description="show how the prompts of this class come about; writes nothing"),
            Option(name="--embedder", description="measure distances with this sentence encoder: a folder, or minilm"),
            Option(
                name="--check_senses",
                description="compare the words of each class with everything that its name can mean, by the sentence "
                "encoder (minilm unless --embedder names another); writes nothing",
                kind=bool,
                default=False,
            ),
            Option(name="--out", description="parquet file to write", metavar="FILE", default="prompts.parquet"),
        ],
    )
    parsed = line.parse(arguments)
    config, options = build(PromptConfig, parsed.fields), parsed.options
    out = Path(options["out"])
    writes = options["inspect"] is None and not options["check_senses"]
    if writes and out.suffix != ".parquet":
        raise UserError(f"--out takes the name of a .parquet file, not {options['out']!r}")
    if writes and not out.is_file():
        check_new_file(out)
    from prism_fast.prompts import build_prompts, load_vocabulary, sample_text
    from prism_fast.prompts.ambiguity import ambiguity_text, check_senses, senses_text
    from prism_fast.prompts.diversity import compare, diversity_text
    from prism_fast.prompts.embedder import PACKAGED, Embedder
    from prism_fast.prompts.inspection import inspect_text

    vocabulary = load_vocabulary(options["vocabulary"])
    if options["check_senses"]:
        print(senses_text(vocabulary, check_senses(vocabulary, Embedder(options["embedder"] or PACKAGED))))
        return
    fits = None
    if options["pipeline"] is not None:
        from prism_fast.pipeline.load import load_pipeline
        from prism_fast.pipeline.text import prompt_fits

        fits = prompt_fits(load_pipeline(options["pipeline"]))
    embed = Embedder(options["embedder"]) if options["embedder"] is not None else None
    prompts = build_prompts(vocabulary, config, fits)
    if options["inspect"] is not None:
        print(inspect_text(vocabulary, prompts, config, options["inspect"]))
        return
    kept = {name: value for name, value in options.items() if name not in ("inspect", "embedder", "check_senses")}
    written = _save_prompts(prompts, {**kept, **canonical(config)}, out)
    print("\n\n".join(filter(None, (sample_text(prompts, vocabulary), ambiguity_text(vocabulary)))))
    print(f"\n{diversity_text(compare(prompts, vocabulary, embed))}")
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
