"""The model hub: one quick question instead of minutes of retries, and an answer that names the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prism_fast.errors import UserError

TIMEOUT_S = 10.0


def is_hub_id(name: str) -> bool:
    """Whether ``name`` reads as a hub id, ``org/name``; a folder of that name goes before."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def fetch(what: str, repository: str, files: Sequence[str]) -> Path:
    """The folder of some files of a model on the hub, or of what the local cache has of them.

    Args:
        what: it is, for the message (``"tiny decoder"``).
        repository: hub id.
        files: patterns; nothing else is fetched.

    Raises:
        UserError: there is no such model, or it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    reason = why_unreachable(repository)
    try:
        return Path(snapshot_download(repository, allow_patterns=list(files), local_files_only=reason is not None))
    except hub_errors() as error:
        raise not_fetched(what, repository, reason, error) from error


def why_unreachable(repository: str, revision: str | None = None) -> str | None:
    """None where the hub has ``repository``; why it cannot be asked where it does not answer.

    Raises:
        UserError: the hub answers that there is no such model, or none that may be read.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no local folder, and no model of the hub is called so: {error}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repository!r} is no local folder, and the hub has no such model or does not show it: check the "
            "spelling, or log in with `hf auth login` where it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"the hub's model {repository!r} has no revision {revision!r}: give another") from error
    except hub_errors() as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def hub_errors() -> tuple[type[BaseException], ...]:
    """What the hub's client raises where the hub does not answer, or not as it should.

    Its transport is requests, whose errors are ``OSError``, or httpx or httpx2, whose errors are ``HTTPError``, by the
    version of huggingface_hub; its own error for an answer that tells of a failure inherits from theirs.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, HfHubHTTPError.__bases__[0])


def not_fetched(what: str, repository: str, reason: str | None, error: BaseException) -> UserError:
    """The error where ``repository`` could not be fetched; ``reason`` is :func:`why_unreachable`'s."""
    from huggingface_hub.constants import ENDPOINT

    if reason is None:
        return UserError(f"cannot fetch the {what} {repository!r} from the hub ({error}): try again, or give a folder")
    return UserError(
        f"{what} {repository!r} is no local folder and not complete in the hub's local cache, and the hub {ENDPOINT} "
        f"cannot be reached ({reason}): connect to the network, or give a local folder"
    )
