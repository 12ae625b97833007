"""Fixtures of the tests of experiments."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toy_experiment
import toy_study
from PIL import Image
from runs import forked


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
def pictures(tmp_path):
    """Four classes of small random pictures: six each to train on, three each to test on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate("abcd"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60 * label, 60 * label + 60, size=(10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "pictures"
