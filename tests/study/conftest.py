"""Networks of the tests of the study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.study.folders import make_folders
from tests.study.studies import make_networks
from tests.study.worlds import one_thread, use_fake_images


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch, one_thread():
        use_fake_images(patch)
        make_networks(folder)
        yield folder


@pytest.fixture(scope="module")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("world"))
