"""Places in an object store, such as ``s3://bucket/prefix``: as much of :class:`pathlib.Path` as a set needs.

A store has no renames, no file locks and no folders. What it has: an object is there whole or not at all, and who reads
it after that sees it. So nothing is written under another name first, and nothing has to be cleaned up.
"""

from __future__ import annotations

import errno
import importlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from prism_fast.errors import UserError

_log = logging.getLogger(__name__)
_BUSY = (errno.EBUSY, errno.EIO)
"""How s3fs tells that another one writes the same object at this moment: of the two codes of S3 it knows one."""
_TRIES = 5
_WAIT_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Store:
    """A kind of object store.

    Args:
        extra: of this package, which installs what is needed.
        package: fsspec's, for this store.
        failures: what that raises, besides OSError and ValueError, as ``module:name``.
    """

    extra: str
    package: str
    failures: tuple[str, ...]


_S3 = Store(
    extra="s3",
    package="s3fs",
    failures=("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError"),
)
_GCS = Store(
    extra="gcs",
    package="gcsfs",
    failures=(
        "gcsfs.retry:HttpError",
        "gcsfs.retry:ChecksumError",
        "google.auth.exceptions:GoogleAuthError",
        "aiohttp:ClientError",
    ),
)
STORES: Mapping[str, Store] = {"s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS}
"""By protocol: those where writing an object is atomic, and reading sees what was written last."""


class StoreError(OSError):
    """A store that does not answer, or refuses."""


class ObjectStat(NamedTuple):
    """What a store knows of an object."""

    st_size: int


@dataclass(frozen=True)
class ObjectPath:
    """An object, or the prefix of several, which is all that a store has of folders.

    Args:
        url: with its protocol, without a slash at its end.

    Its methods raise FileNotFoundError where there is no such object or bucket and :class:`StoreError` where the store
    does not answer or refuses.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def store(self) -> Store:
        """Where it is."""
        return STORES[self.url.partition("://")[0]]

    def absolute(self) -> ObjectPath:
        """Itself."""
        return self

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a prefix is there once an object is."""

    def check(self) -> bool:
        """Whether there is anything under this prefix.

        Raises:
            UserError: the package for this store is missing, the store does not answer or refuses, or there is no such
                bucket.
        """
        try:
            if self.sizes():
                return True
            with self._told() as (system, path):
                bucket = path.partition("/")[0]
                there = system.exists(bucket)
        except ImportError as error:
            store = self.store
            raise UserError(
                f"{self} needs the package {store.package}: pip install 'prism_fast[{store.extra}]'"
            ) from error
        except StoreError as error:
            raise UserError(
                f"{self} cannot be the folder of the images ({error}): check its name, and what {self.store.package} "
                "finds of credentials and endpoint"
            ) from error
        if not there:
            raise UserError(f"{self} cannot be the folder of the images (no bucket {bucket!r}): make the bucket first")
        return False

    def exists(self) -> bool:
        """Whether there is an object of this name."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def stat(self) -> ObjectStat:
        """Its size."""
        with self._told() as (system, path):
            found = system.info(path)
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return ObjectStat(found["size"])

    def sizes(self) -> dict[str, int]:
        """Name to size of the objects right under this prefix; asks once."""
        try:
            with self._told() as (system, path):
                found = system.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        files = (entry for entry in found if entry["type"] == "file" and entry["name"].startswith(f"{path}/"))
        return {entry["name"].removeprefix(f"{path}/"): entry["size"] for entry in files}

    def iterdir(self) -> Iterator[ObjectPath]:
        """The objects right under this prefix."""
        return (self / name for name in self.sizes())

    def read_bytes(self) -> bytes:
        """All of it."""
        with self._told() as (system, path):
            data: bytes = system.cat_file(path)
        return data

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Name to content of objects right under this prefix, several asked for at once."""
        if not names:
            return {}
        with self._told() as (system, path):
            found = system.cat([f"{path}/{name}" for name in names])
        # Of a single name fsspec gives the content alone.
        return {name: found if isinstance(found, bytes) else found[f"{path}/{name}"] for name in names}

    def write_bytes(self, data: bytes) -> None:
        """Is ``data`` from now on."""
        with self._told() as (system, path):
            system.pipe_file(path, data)

    def create(self, data: bytes) -> bool:
        """Is ``data`` from now on unless it existed; whether it was written.

        Where the store cannot write on that condition, two that create it at the same moment may both be told that
        they have: read it back.
        """
        if self.exists():
            return False
        with self._told() as (system, path):
            for attempt in range(_TRIES):
                try:
                    system.pipe_file(path, data, mode="create")
                    return True
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno == errno.ENOSYS:
                        _log.warning("%s cannot write on a condition: begin one run after the other", self)
                        break
                    if self.exists():
                        return False
                    if error.errno not in _BUSY or attempt == _TRIES - 1:
                        raise
                time.sleep(_WAIT_S)
            system.pipe_file(path, data)
        return True

    def upload(self, file: BinaryIO) -> None:
        """Is the content of an open file from now on, which need not have a name."""
        file.flush()
        with self._told() as (system, path):
            system.put_file(f"/proc/self/fd/{file.fileno()}", path)

    def unlink(self, missing_ok: bool = False) -> None:
        """There is no such object from now on."""
        try:
            with self._told() as (system, path):
                system.rm_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @contextmanager
    def _told(self) -> Iterator[tuple[Any, str]]:
        """fsspec's file system and its name of this place; what goes wrong inside comes out as OSError."""
        import fsspec

        # A listing that is kept would not show what other runs write. Instances are kept, by fsspec: one a thread.
        system, path = fsspec.url_to_fs(self.url, use_listings_cache=False)
        try:
            yield system, path
        except (FileNotFoundError, FileExistsError, StoreError):
            raise
        except _failures(self.store) as error:
            reason = str(error) or type(error).__name__
            raise StoreError(getattr(error, "errno", None) or errno.EIO, reason, str(self)) from error


def _failures(store: Store) -> tuple[type[Exception], ...]:
    names = [failure.split(":") for failure in store.failures]
    return (OSError, ValueError, *(getattr(importlib.import_module(module), name) for module, name in names))


@contextmanager
def answering() -> Iterator[None]:
    """A store that stops to answer is the user's to mend, not a bug."""
    try:
        yield
    except StoreError as error:
        raise UserError(f"{error}; what is published is whole, the same command continues") from error
