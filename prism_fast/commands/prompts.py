"""``prism-fast prompts``: a prompt list, and its settings beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.config import cache_dir, canonical, check_new_file, save_yaml
from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build, read_fields

if TYPE_CHECKING:
    from prism_fast.prompts import PromptList, Vocabulary
    from prism_fast.prompts.fit import Fits
    from prism_fast.prompts.llm.settings import ListConfig
    from prism_fast.prompts.llm.writing import WrittenContent


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.prompts.llm.settings import ListConfig

    line = CommandLine(
        program="prism-fast prompts",
        description="Writes a prompt list: for each class what the generator is told, and how that came about.",
        kind=ListConfig,
        recipe_group="prompts",
        options=[
            Option(
                name="--vocabulary",
                description="the classes: a built-in list, a .csv, .json, .yaml or .txt file, or a folder",
                default="fashion",
            ),
            Option(name="--recipe", description="take the kind of prompts from this recipe"),
            Option(name="--pipeline", description="cut prompts to what this pipeline's tokenizer takes, not CLIP's"),
            Option(name="--inspect", description="show how the prompts of this class come about; writes no list"),
            Option(
                name="--dry_run",
                description="tell calls, tokens and price of a language model; asks nothing and writes nothing",
                kind=bool,
                default=False,
            ),
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
    config, options = build(ListConfig, parsed.fields), parsed.options
    out = Path(options["out"])
    writes = options["inspect"] is None and not (options["dry_run"] or options["check_senses"])
    if writes and out.suffix != ".parquet":
        raise UserError(f"--out takes the name of a .parquet file, not {options['out']!r}")
    if writes and not out.is_file():
        check_new_file(out)
    settings = _settings(config, options)
    from prism_fast.prompts import build_prompts, load_vocabulary, sample_text
    from prism_fast.prompts.ambiguity import ambiguity_text, check_senses, senses_text
    from prism_fast.prompts.clip_tokens import fits_clip
    from prism_fast.prompts.diversity import compare, diversity_text
    from prism_fast.prompts.embedder import PACKAGED, Embedder
    from prism_fast.prompts.inspection import inspect_text

    vocabulary = load_vocabulary(options["vocabulary"])
    if options["check_senses"]:
        print(senses_text(vocabulary, check_senses(vocabulary, Embedder(options["embedder"] or PACKAGED))))
        return
    fits: Fits = fits_clip
    if options["pipeline"] is not None:
        from prism_fast.pipeline.load import load_pipeline
        from prism_fast.pipeline.text import prompt_fits

        fits = prompt_fits(load_pipeline(options["pipeline"]))
    embed = Embedder(options["embedder"]) if options["embedder"] is not None else None
    content = None
    if config.llm.backend != "none" or options["dry_run"]:
        if writes:
            _check_settings(out, settings)  # before anything is paid for
        content = _written_content(vocabulary, config, fits, options)
        if content is None:
            return
    prompts = build_prompts(vocabulary, config, fits, content.accepted if content else None)
    if options["inspect"] is not None:
        print(inspect_text(vocabulary, prompts, config, options["inspect"]))
        return
    if content is not None:
        prompts = replace(prompts, report={**prompts.report, **content.report})
    written = _save_prompts(prompts, settings, out)
    print("\n\n".join(filter(None, (sample_text(prompts, vocabulary), ambiguity_text(vocabulary)))))
    print(f"\n{diversity_text(compare(prompts, vocabulary, embed))}")
    print(
        f"\nwrote {len(prompts)} prompts to {out}" if written else f"\n{out} holds these {len(prompts)} prompts already"
    )


def _settings(config: ListConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved beside a list: what decided it."""
    kept = {name: value for name, value in options.items() if name not in ("inspect", "embedder", "dry_run")}
    fields: dict[str, Any] = canonical(config)
    if config.llm.backend == "none":
        del fields["llm"]
    return {**kept, **fields}


def _written_content(
    vocabulary: Vocabulary, config: ListConfig, fits: Fits, options: Mapping[str, Any]
) -> WrittenContent | None:
    """What the language model writes, told to the user on the way; None after a dry run."""
    from prism_fast.progress import progress
    from prism_fast.prompts.llm.cache import AnswerCache
    from prism_fast.prompts.llm.model import load_model
    from prism_fast.prompts.llm.report import estimate_text, judged_text, usage_text
    from prism_fast.prompts.llm.writing import plan_calls, write_content
    from prism_fast.prompts.prompt_list import check_phrases

    llm, inspected = config.llm, options["inspect"]
    classes = None if inspected is None else vocabulary.matches(inspected) or (vocabulary.index(inspected),)
    if llm.backend == "none":
        print("no language model: 0 calls, 0 tokens, and no price (--llm.backend none)")
        return None
    check_phrases(vocabulary, config, fits)
    model = load_model(llm)
    cache = AnswerCache(Path(llm.cache).expanduser() if llm.cache else cache_dir() / "llm" / "answers.jsonl")
    if options["dry_run"]:
        print(estimate_text(plan_calls(vocabulary, config, llm, model, classes), model, cache, llm))
        return None
    content = write_content(vocabulary, config, llm, model, cache, fits=fits, classes=classes, progress=progress)
    for index in classes or ():
        print(f"{judged_text(content, index, model.name)}\n")
    print(f"{usage_text(content, model.name, llm)}\n")
    if cache.broken:
        print(f"{cache.path}: {cache.broken} lines are no answers and were passed over\n")
    return content


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Finds that settings of something else are not in the way.

    Raises:
        UserError: they are.
    """
    beside = _beside(out)
    if (beside.is_symlink() or beside.exists()) and not _holds_settings(beside, settings):
        raise _in_the_way(beside)


def _save_prompts(prompts: PromptList, settings: dict[str, Any], out: Path) -> bool:
    """The list and, beside it, its settings; whether anything had to be written.

    Raises:
        UserError: a file of something else is in the way of either; nothing was touched.
    """
    beside = _beside(out)
    missing = [not path.is_symlink() and not path.exists() for path in (out, beside)]
    for path, holds in (
        (out, missing[0] or _holds_prompts(out, prompts)),
        (beside, missing[1] or _holds_settings(beside, settings)),
    ):
        if not holds:
            raise _in_the_way(path)
    if missing[0]:
        prompts.save(out)
    if missing[1]:
        save_yaml(settings, beside)
    return any(missing)


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.config.yaml")


def _in_the_way(path: Path) -> UserError:
    return UserError(f"{path} exists and holds something else than these prompts: give another --out, or move it away")


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
