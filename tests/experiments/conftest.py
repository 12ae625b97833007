"""Fixtures of the tests of experiments."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_experiment
import toy_study
from runs import forked, write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a run is to write; it is not there yet."""
    return tmp_path / "run"


@pytest.fixture
def forked_workers() -> Iterator[None]:
    """Dask's workers on this machine are forked too, and know the toys' folders; the tests of Ctrl-C start them anew."""
    import dask
    import distributed  # noqa: F401 - its values of the configuration would otherwise go with ours

    forked()
    variables = dict.fromkeys((toy_experiment.LOG, toy_study.LOG), "")
    options = {"distributed.worker.multiprocessing-method": "forkserver", "distributed.nanny.environ": variables}
    with dask.config.set(options):
        yield


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four classes of small random pictures: six each to train on, three each to test on."""
    return write_pictures(tmp_path / "pictures")
