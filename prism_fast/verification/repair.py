"""Makes the damaged shards of a set again, to the bytes that they had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory
from prism_fast.progress import progress as show_progress
from prism_fast.recipes.fields import build, read_fields
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.regular_file import read_regular
from prism_fast.synthesis.shards import CONFIG_FILE, INFO_FILE
from prism_fast.verification.run import VerifyReport, verify

if TYPE_CHECKING:
    from prism_fast.synthesis.models import Models

MAX_CONFIG_BYTES = 1 << 20
_MAX_DEPTH = 20
_CURE = "run the command that began the set"


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What a repair did.

    Args:
        remade: shards that were made again.
        changed: of them those whose archive is not the one that the old statistics named: they were damaged too, or
            the set does not say which versions encoded it.
        after: what was found in the set afterwards.
    """

    remade: tuple[int, ...]
    changed: tuple[int, ...]
    after: VerifyReport


def repair(
    found: VerifyReport,
    *,
    trust_code: bool = False,
    workers: int | None = None,
    progress: ProgressFactory = show_progress,
    models: Models | None = None,
) -> RepairReport:
    """Makes exactly the damaged shards again, from the set's ``config.yaml``, and verifies the set once more.

    A damaged file stays until the new one takes its place. Shards that are still to be made are left to the command
    that began the set.

    Args:
        found: what :func:`verify` found.
        trust_code: run the code that ``config.yaml`` names (a teacher or student ``module:factory``).
        workers: of the verification.
        progress: how progress is shown.
        models: in place of those that ``config.yaml`` names.

    Raises:
        UserError: it cannot be repaired: ``config.yaml`` or ``_info.json`` is damaged or names code that nobody
            trusted, or the models, the versions or the machine are not those of the set. Nothing was touched then.
        Interrupted: a signal stopped it.
    """
    remade: tuple[int, ...] = ()
    if not found.sound:
        config = _config(found, trust_code)
        from prism_fast.data.sources import load_source_models
        from prism_fast.synthesis.job import synthesize

        synthesize(
            config, found.folder, progress=progress, models=models, remake=found.damaged, load=load_source_models
        )
        remade = found.damaged
    after = verify(found.folder, deep=found.deep, workers=workers, progress=progress)
    changed = [shard for shard in remade if found.archives.get(shard, "") not in ("", after.archives.get(shard))]
    return RepairReport(remade=remade, changed=tuple(changed), after=after)


def _config(found: VerifyReport, trust_code: bool) -> SynthesisConfig:
    if not found.planned:
        raise UserError(
            f"{found.folder / INFO_FILE} is damaged, and it says what the set is: nothing can be repaired without it; "
            "synthesize into another folder"
        )
    path = found.folder / CONFIG_FILE
    _check_settings(path)
    config = build(SynthesisConfig, read_fields(path))
    code = [name for name in _networks(config) if ":" in name.removeprefix("worst:").replace("hf-hub:", "")]
    if code and not trust_code:
        raise UserError(
            f"{path} names {code[0]!r}, whose code a repair would run: where you trust it, add --trust-code"
        )
    return config


def _networks(config: SynthesisConfig) -> list[str]:
    student = config.sampler.guidance.student if config.sampler.guidance is not None else None
    return [config.teacher, *([student] if student is not None else [])]


def _check_settings(path: Path) -> None:
    """Refuses a file that grows when it is read: one of these settings has no aliases and no deep nesting."""
    import yaml

    try:
        text = read_regular(path, MAX_CONFIG_BYTES).decode()
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
                raise UserError(f"{path} is not as synthesis writes it (aliases or deep nesting): {_CURE}")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}), which says how the set is made: {_CURE}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"damaged {path}, which says how the set is made: {error}; {_CURE}") from error
