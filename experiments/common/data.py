"""Images of handwritten digits: scikit-learn's, which come with a dependency, or MNIST."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

from .rows import Rows

_EMBEDDED, _MNIST = "scikit-learn digits", "MNIST"


@dataclass(frozen=True, eq=False)
class Digits:
    """A data set of digit images.

    Attributes:
        source: Where the images come from.
        train, test: Images of shape (N, 1, 28, 28), float32 in [0, 1]; a label is the position of the digit in the list that
            was asked for.
    """

    source: str
    train: Rows
    test: Rows


def load_digits_of(
    digits: Sequence[int],
    *,
    train_per_digit: int,
    test_per_digit: int,
    data_root: Path | None = None,
    download: bool = False,
) -> Digits:
    """The first images of each digit, in the order of the files.

    Args:
        digits: The digits wanted; label i stands for ``digits[i]``.
        train_per_digit: Training images of each.
        test_per_digit: Test images of each.
        data_root: A folder with ``MNIST/raw`` as torchvision keeps it. None: scikit-learn's embedded digits (about 180
            of each, 8 x 8 pixels, enlarged to 28 x 28), the first of each for training and the next for testing.
        download: Fetch MNIST with torchvision into ``data_root`` first if it is not there.

    Raises:
        FileNotFoundError: If MNIST is not in ``data_root``.
        ValueError: If a file is damaged, or there are too few images.
    """
    if data_root is None:
        both = _first_of_each(*_embedded_images(), digits, train_per_digit + test_per_digit, "the embedded digits")
        rows = torch.arange(len(both)).reshape(len(digits), -1)
        train, test = rows[:, :train_per_digit].flatten(), rows[:, train_per_digit:].flatten()
        return Digits(_EMBEDDED, *(Rows(both.inputs[part], both.labels[part]) for part in (train, test)))
    training, testing = _mnist_images(data_root, download)
    return Digits(
        _MNIST,
        _first_of_each(*training, digits, train_per_digit, "MNIST's training set"),
        _first_of_each(*testing, digits, test_per_digit, "MNIST's test set"),
    )


def load_first_of(
    digits: Sequence[int], *, train: int, test: int | None = None, data_root: Path | None = None, download: bool = False
) -> Digits:
    """The first images of several digits together, in the order of the files, however many there are of each.

    Args:
        digits: The digits wanted; label i stands for ``digits[i]``.
        train: Training images.
        test: Test images; None: all.
        data_root: As in :func:`load_digits_of`; of the embedded digits the first are for training, those that follow for
            testing.
        download: As there.

    Raises:
        FileNotFoundError: If MNIST is not in ``data_root``.
        ValueError: If a file is damaged, or there are too few images.
    """
    if data_root is None:
        both = _first_of_all(*_embedded_images(), digits, None, "the embedded digits")
        least = train + (1 if test is None else test)
        if least > len(both):
            raise ValueError(
                f"Got {train} training images and at least {least - train} to test on to take from the embedded digits, "
                f"expected at most {len(both)} together."
            )
        parts = slice(train), slice(train, None if test is None else least)
        return Digits(_EMBEDDED, *(Rows(both.inputs[part], both.labels[part]) for part in parts))
    training, testing = _mnist_images(data_root, download)
    return Digits(
        _MNIST,
        _first_of_all(*training, digits, train, "MNIST's training set"),
        _first_of_all(*testing, digits, test, "MNIST's test set"),
    )


@cache
def _embedded_images() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images.reshape(-1, 1, 8, 8) / 16.0, dtype=torch.float32)
    return F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False), torch.tensor(labels)


def _mnist_images(root: Path, download: bool) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Images (N, 1, 28, 28), bytes, and labels, of the training set and of the test set."""
    from torchvision.datasets.mnist import MNIST, read_image_file, read_label_file

    raw = root / "MNIST" / "raw"

    def read(name: str, reader: Callable[[str], torch.Tensor]) -> torch.Tensor:
        path = raw / name
        try:
            return reader(str(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Got data root {str(root)!r}, expected it to hold MNIST/raw/{name}; name another with --data-root or "
                "QTB_DATA, fetch MNIST with --download, or use the digits that scikit-learn ships with --dataset digits."
            ) from error
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged: got {path.stat().st_size} bytes that are not what its header promises; delete it and "
                "fetch it again with --download."
            ) from error

    if download and len([*raw.glob("*-ubyte")]) < 4:  # MNIST reads them too, and does not name a damaged one
        MNIST(root, download=True)
    return tuple(
        (
            read(f"{part}-images-idx3-ubyte", read_image_file)[:, None],
            read(f"{part}-labels-idx1-ubyte", read_label_file),
        )
        for part in ("train", "t10k")
    )


def _first_of_each(images: torch.Tensor, labels: torch.Tensor, digits: Sequence[int], count: int, where: str) -> Rows:
    parts = []
    for digit in digits:
        rows = (labels == digit).nonzero().flatten()
        if len(rows) < count:
            raise ValueError(f"Got {count} images of digit {digit} to take from {where}, expected at most {len(rows)}.")
        parts.append(rows[:count])
    return _rows(images, labels, digits, torch.cat(parts))


def _first_of_all(
    images: torch.Tensor, labels: torch.Tensor, digits: Sequence[int], count: int | None, where: str
) -> Rows:
    rows = torch.isin(labels, torch.tensor(list(digits))).nonzero().flatten()
    if count is not None and len(rows) < count:
        raise ValueError(
            f"Got {count} images of the digits {list(digits)} to take from {where}, expected at most {len(rows)}."
        )
    return _rows(images, labels, digits, rows[:count])


def _rows(images: torch.Tensor, labels: torch.Tensor, digits: Sequence[int], rows: torch.Tensor) -> Rows:
    """These images, bytes as fractions of 255; only of those that are asked for, because all of MNIST takes its time."""
    chosen, classes = images[rows], torch.tensor(list(digits))
    targets = (labels[rows, None] == classes).int().argmax(dim=1)
    return Rows(chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen, targets)
