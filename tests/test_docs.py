"""The documents say what is there: packages, files, links, commands, defaults, and Python that runs."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from prism_fast import cli
from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Parsed
from prism_fast.recipes.fields import default_fields

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prism_fast"
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [path.relative_to(ROOT).as_posix() for path in DOCS]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"(?<![\w./<-])((?:prism_fast|docs|tests|bench|\.ci)/[\w./-]*\w)")


def text_of(path: Path) -> str:
    """A document without its comments: what a reader sees."""
    return _COMMENT.sub("", path.read_text())


def python_blocks(path: Path) -> list[str]:
    return [body for language, body in _FENCED.findall(text_of(path)) if language == "python"]


def commands(text: str) -> list[str]:
    """Lines of code blocks, fenced or indented, joined where they end in a backslash; output lines are among them."""
    fenced = [line for language, body in _FENCED.findall(text) if language != "python" for line in body.splitlines()]
    indented = [line[4:] for line in _FENCED.sub("", text).replace("\\\n", " ").splitlines() if line[:4] == " " * 4]
    return [line.strip() for line in [*"\n".join(fenced).replace("\\\n", " ").splitlines(), *indented]]


def anchor(heading: str) -> str:
    """A heading's fragment, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def table_names(text: str, heading: str) -> set[str]:
    """First cells, in backticks, of the table under a heading."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def packages() -> set[str]:
    """Folders of prism_fast that hold code."""
    folders = (path for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    return {folder.name for folder in folders if any(folder.rglob("*.py"))}


def test_structure_names_every_package_and_no_other() -> None:
    text = text_of(ROOT / "docs" / "structure.md")
    assert table_names(text, "Packages") == {f"{name}/" for name in packages()}
    assert table_names(text, "Modules beside them") == {path.name for path in PACKAGE.glob("*.py")}


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_relative_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in _LINK.findall(_FENCED.sub("", text_of(path))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, fragment = target.partition("#")
        there = (path.parent / name) if name else path
        headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE) if there.suffix == ".md" else []
        if not there.exists() or (fragment and fragment not in map(anchor, headings)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_named_files_exist(path: Path) -> None:
    missing = [name for name in _PATH.findall(text_of(path)) if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_make_targets_and_modules_exist(path: Path) -> None:
    text, makefile = text_of(path), (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^    |`)make ([a-z][\w-]*)", text, re.MULTILINE)
    assert not [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)]
    modules = re.findall(r"python -m (prism_fast[\w.]*)", text)
    assert not [name for name in modules if importlib.util.find_spec(name) is None]


class _Accepted(Exception):
    """The command line was understood; nothing is run."""


def parse_only(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the command line's own parser read a command."""
    parse = CommandLine.parse

    def stop(line: CommandLine, arguments: Any) -> Parsed:
        parse(line, arguments)
        raise _Accepted

    monkeypatch.setattr(CommandLine, "parse", stop)
    name, *arguments = shlex.split(command, comments=True)[1:]
    with pytest.raises(_Accepted):
        cli.COMMANDS[name].run(arguments)


COMMANDS = sorted({line for path in DOCS for line in commands(text_of(path)) if line.startswith("prism-fast ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_parser_accepts_every_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse_only(command, monkeypatch)


def test_the_readme_shows_every_command() -> None:
    lines = commands(text_of(ROOT / "README.md"))
    shown = {line.split()[1] for line in lines if line.startswith("prism-fast ")}
    assert shown >= set(cli.COMMANDS) - {"demo"}  # the demo is `make demo`


def test_files_of_settings_are_understood(tmp_path: Path) -> None:
    """Those that name a recipe of ``synthesize``."""
    import torch

    from prism_fast.distill.drawn import drawn_config

    blocks = [(path, body) for path in DOCS for language, body in _FENCED.findall(text_of(path)) if language == "yaml"]
    named = [(path, body) for path, body in blocks if body.startswith("recipe:")]
    assert {path.stem for path, _ in named} >= {"papers", "diffdfkd"}
    for path, body in named:
        (tmp_path / "settings.yaml").write_text(body)
        config = drawn_config(str(tmp_path / "settings.yaml"), torch.device("cpu"))
        assert f"recipe: {config.recipe}\n" in body, path


def test_a_wrong_flag_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="steeps"):
        parse_only("prism-fast synthesize --sampler.steeps 3 --out x", monkeypatch)


def documented(path: str, heading: str) -> dict[str, str]:
    """Option to default, as the table under a heading has them; ``start``, ``stop`` may share a line."""
    found: dict[str, str] = {}
    section = text_of(ROOT / path).partition(f"## {heading}\n")[2].partition("\n## ")[0]
    for names, values in re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", section, re.MULTILINE):
        options = re.findall(r"`([^`]+)`", names)
        defaults = values.split(",") if len(options) > 1 else [values]
        found |= {name: value.strip().strip("`") for name, value in zip(options, defaults, strict=True)}
    return found


def defaults_of(kind: type) -> dict[str, Any]:
    """Those of the fields that have one."""
    return default_fields(kind)


def as_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_options_and_defaults_are_the_codes() -> None:
    from prism_fast.data.loader_config import LoaderConfig
    from prism_fast.distill.replay_config import ReplayConfig
    from prism_fast.inversion.config import InversionConfig
    from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
    from prism_fast.sampling.image_to_image_config import ImageToImageConfig
    from prism_fast.study.evaluate_config import EvaluateConfig
    from prism_fast.study.study_config import StudyConfig
    from prism_fast.synthesis.filter_config import FilterConfig
    from prism_fast.synthesis.mix_config import MixConfig
    from prism_fast.tokens.config import TokensConfig
    from prism_fast.zoo.world import WorldConfig

    tables = [
        ("guidance", "Options", GuidanceConfig),
        ("guidance", "The rest of the sampler", SamplerConfig),
        ("shards", "Filtering", FilterConfig),
        ("shards", "Latent CutMix", MixConfig),
        ("image-to-image", "Options", ImageToImageConfig),
        ("methods/dda", "Inversion", InversionConfig),
        ("loading", "Options", LoaderConfig),
        ("evaluation", "Options", EvaluateConfig),
        ("study/README", "Options", StudyConfig),
        ("tokens", "How a word is learned", TokensConfig),
        ("distill", "While the images are made", ReplayConfig),
    ]
    for page, heading, kind in tables:
        told = {name: as_value(value) for name, value in documented(f"docs/{page}.md", heading).items()}
        real = defaults_of(kind)
        if kind is SamplerConfig:
            assert (told.pop("guidance"), real.pop("guidance")) == ("per recipe", None)
        assert told == real, f"docs/{page}.md, {heading}"
    assert table_names(text_of(ROOT / "docs" / "zoo.md"), "Its settings") == set(defaults_of(WorldConfig))


def test_the_members_and_columns_of_a_shard_are_told() -> None:
    from prism_fast.synthesis import shards, tally

    text = text_of(ROOT / "docs" / "shards.md")
    for member in ("png", *shards.LABEL_MEMBERS):
        assert f"`000000042.{member}`" in text
    keys = {
        name for cell in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert set(shards._COLUMNS) <= keys
    assert set(tally.shard_stats(0, [{"index": 0, "accepted": False, "reason": "", "skipped": 0}], 0, "", [])) <= keys


def test_python_blocks_are_python() -> None:
    for path in DOCS:
        for block in python_blocks(path):
            ast.parse(block)


SMALL = {"images=1000": "images=12, pilot_images=2", "steps=20": "steps=2, compute_batch=6", "epochs=40": "epochs=1"}
"""What is written for people, and what a test can afford."""


def test_python_of_readme_loading_and_shards_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """On random weights in the place of the built-in ones: what they draw is noise, how they are used is the same."""
    from prism_fast.synthesis.shards import shard_name
    from tests.tiny import save_tiny_pipeline, save_tiny_teacher

    save_tiny_pipeline(tmp_path / "pipeline", seed)
    save_tiny_teacher(tmp_path / "teacher", seed=seed)
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md", lambda block: "prism_fast" in block)
    shards = (ROOT / "docs" / "shards.md", lambda block: True)
    loading = (ROOT / "docs" / "loading.md", lambda block: True)
    for path, wanted in (readme, loading, shards):
        for block in filter(wanted, python_blocks(path)):
            for written, small in SMALL.items():
                block = block.replace(written, small)
            for place in ("pipeline", "teacher"):
                block = block.replace(f'{place}="fashion"', f'{place}="./{place}"')
                block = block.replace(f'load_{place}("fashion")', f'load_{place}("./{place}")')
            block = block.replace('compile("fashion"', 'compile("./pipeline"')
            assert '"fashion"' not in block
            found: dict[str, Any] = {}
            exec(compile(block, path.name, "exec"), found)
    assert len(found["shards"].pipeline) > 0
    assert (tmp_path / "runs" / "first" / shard_name(0, "json")).exists()
    assert found["image"].size == (32, 32)
    assert found["logits"].shape == (10,)
    assert found["record"]["class_index"] == found["label"]


def test_the_reader_of_the_largest_logits_reads_what_ours_does(seed: int) -> None:
    import numpy as np

    from prism_fast.synthesis.soft import describe_logits, pack_logits, unpack_logits

    (block,) = [block for block in python_blocks(ROOT / "docs" / "shards.md") if "read_soft" in block]
    found: dict[str, Any] = {}
    exec(compile(block, "shards.md", "exec"), found)
    data = pack_logits(np.random.default_rng(seed).normal(0, 5, 40).astype(np.float16), 4)
    assert np.allclose(found["read_soft"](data, {"logits": describe_logits(40, 4)}), unpack_logits(data, 40, 4))
