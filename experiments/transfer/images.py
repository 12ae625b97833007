"""Labelled photographs and digits: folders of images, CIFAR-10, and scikit-learn's digits, which need no download."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from .transfer_settings import ImageSettings, names_in

_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DIGITS_FOR_TRAINING = 0.7


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, decoded when they are asked for.

    Attributes:
        source: Where they come from, for people.
        classes: The classes' names; label i stands for ``classes[i]``.
        labels: Shape (N,), int64.
        decode: From a row's number to its image, RGB, as it is stored: like torchvision's ImageFolder it does not turn
            photographs as their EXIF data say.
        fingerprint: Reads the images; what it returns changes with any change of them or of their order.
    """

    source: str
    classes: tuple[str, ...]
    labels: torch.Tensor
    decode: Callable[[int], Image.Image]
    fingerprint: Callable[[], str]

    def __len__(self) -> int:
        return len(self.labels)

    def seen(self, rows: torch.Tensor, view: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
        """These rows' images as a view shows them, shape (n, 3, size, size)."""
        return torch.stack([view(self.decode(row)) for row in rows.tolist()])

    def part(self, rows: torch.Tensor) -> Images:
        """Those of these rows, shape (n,)."""
        numbers = rows.tolist()

        def fingerprint() -> str:
            return _digest([self.fingerprint(), numbers])

        return Images(self.source, self.classes, self.labels[rows], lambda row: self.decode(numbers[row]), fingerprint)

    def check(self) -> None:
        """Decodes every image.

        Raises:
            ValueError: If one is damaged.
        """
        for row in tqdm(range(len(self)), desc=f"checking {self.source}", leave=False, disable=None):
            self.decode(row)


def images_of(settings: ImageSettings) -> tuple[Images, Images]:
    """Training and test images."""
    root = None if settings.data_root is None else Path(settings.data_root)
    classes = names_in(settings.classes) or None
    return load_images(settings.dataset, data_root=root, classes=classes, download=settings.download)


def load_images(
    dataset: str, *, data_root: Path | None, classes: Sequence[str] | None = None, download: bool = False
) -> tuple[Images, Images]:
    """The training and the test images of a data set.

    In folders, an image is what torchvision's ImageFolder takes for one by its name; hidden files and folders are none.

    Args:
        dataset: ``digits`` (scikit-learn's), ``ants-bees`` (``hymenoptera_data`` in the data root), ``cifar10`` (in the data
            root: ``cifar10_images.zip`` or a folder ``cifar10_images``, with ``train/CLASS`` and ``test/CLASS``; or as
            torchvision keeps it), or the path of a folder with ``train/CLASS`` and ``test/CLASS`` or ``val/CLASS``.
        data_root: The folder of data sets.
        classes: The classes wanted, in the order of their labels; None: all, in alphabetical order.
        download: Fetch CIFAR-10 with torchvision if it is not in the data root.

    Raises:
        FileNotFoundError: If the data are not where they should be.
        ValueError: If a class is unknown, has no images, or is not in both parts.
        OSError: If they cannot be fetched.
    """
    train, test = (_part(dataset, training, data_root, classes, download) for training in (True, False))
    if train.classes != test.classes:
        raise ValueError(
            f"--dataset {dataset}: got images of {', '.join(train.classes)} to train on, of {', '.join(test.classes)} to "
            "test on, expected the same classes; choose those that are in both with --classes."
        )
    return train, test


def _part(
    dataset: str, training: bool, data_root: Path | None, classes: Sequence[str] | None, download: bool
) -> Images:
    if dataset == "digits":
        return _digits(training, classes)
    if dataset not in ("ants-bees", "cifar10"):
        return _folder(Path(dataset), training, classes)
    if data_root is None:
        raise FileNotFoundError(
            f"--dataset {dataset}: got no data root; name the folder with --data-root or QTB_DATA, or use --dataset digits."
        )
    if dataset == "ants-bees":
        return _folder(data_root / "hymenoptera_data", training, classes)
    if (data_root / "cifar10_images.zip").is_file():
        return _zip(data_root / "cifar10_images.zip", training, classes)
    if (data_root / "cifar10_images").is_dir():
        return _folder(data_root / "cifar10_images", training, classes)
    return _torchvision_cifar(data_root, training, classes, download)


def _folder(root: Path, training: bool, classes: Sequence[str] | None) -> Images:
    splits = ["train"] if training else ["test", "val"]
    folder = next((root / split for split in splits if (root / split).is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"--dataset: got {str(root)!r}, expected digits, ants-bees, cifar10, or a folder with "
            f"{' or '.join(f'{split}/CLASS' for split in splits)} in it, each class with its images."
        )
    there = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = _chosen(classes, there, str(folder))
    files = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if _looks_like_an_image(path.name) and path.is_file()
    ]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    if empty := [name for label, name in enumerate(names) if label not in labels]:
        raise ValueError(
            f"{folder}: no images in {', '.join(empty)}, expected some in each class; put them there, or leave the class "
            "out with --classes."
        )

    def fingerprint() -> str:
        return _digest(
            (str(path.relative_to(folder)), label, hashlib.sha256(path.read_bytes()).hexdigest())
            for path, label in files
        )

    return Images(
        root.resolve().name, names, labels, lambda row: _rgb(files[row][0].read_bytes, files[row][0]), fingerprint
    )


def _zip(path: Path, training: bool, classes: Sequence[str] | None) -> Images:
    prefix = f"{path.stem}/{'train' if training else 'test'}/"
    archive, images = _archive(path, path.stat().st_mtime_ns, path.stat().st_size)
    by_class: dict[str, list[zipfile.ZipInfo]] = {}
    for info in images:
        if info.filename.startswith(prefix):
            by_class.setdefault(info.filename.removeprefix(prefix).partition("/")[0], []).append(info)
    if not by_class:
        raise FileNotFoundError(f"Got {path}, expected it to hold {prefix}CLASS, each class with its images.")
    names = _chosen(classes, sorted(by_class), str(path))
    members = [info for name in names for info in by_class[name]]
    labels = torch.tensor([label for label, name in enumerate(names) for _ in by_class[name]])

    def decode(row: int) -> Image.Image:
        return _rgb(lambda: archive.read(members[row]), f"{path}: {members[row].filename}")

    def fingerprint() -> str:
        facts = [(info.filename, info.file_size, info.CRC) for info in members]
        return _digest(zip(labels.tolist(), facts, strict=True))

    return Images(path.stem, names, labels, decode, fingerprint)


@lru_cache(maxsize=1)
def _archive(path: Path, modified: int, size: int) -> tuple[zipfile.ZipFile, tuple[zipfile.ZipInfo, ...]]:
    """A zip file and its images, by name; listed once as long as it is of that time (in ns) and size (in bytes).

    Raises:
        ValueError: If it is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no zip file that can be read ({error}); fetch it again.") from error
    images = [info for info in archive.infolist() if _looks_like_an_image(info.filename)]
    return archive, tuple(sorted(images, key=lambda info: info.filename))


def _torchvision_cifar(root: Path, training: bool, classes: Sequence[str] | None, download: bool) -> Images:
    from torchvision.datasets import CIFAR10

    if download and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("--download: got several processes, which would all write; fetch CIFAR-10 with one first.")
    try:
        data = CIFAR10(str(root), train=training, download=download)
    except OSError as error:
        raise OSError(f"--download: CIFAR-10 could not be fetched into {root} ({error}).") from error
    except RuntimeError as error:
        raise FileNotFoundError(
            f"Got data root {str(root)!r}, expected it to hold cifar10_images.zip, a folder cifar10_images with "
            "train/CLASS and test/CLASS, or CIFAR-10 as torchvision keeps it (fetch that with --download)."
        ) from error
    names = _chosen(classes, _CIFAR_CLASSES, "CIFAR-10")
    return _in_memory("CIFAR-10", data.data, np.array(data.targets), _CIFAR_CLASSES, names)


def _digits(training: bool, classes: Sequence[str] | None) -> Images:
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    # The same division whatever classes are wanted: nothing tested here was trained on elsewhere.
    by_digit = [np.flatnonzero(digits == digit) for digit in range(10)]
    parts = [np.split(rows, [int(_DIGITS_FOR_TRAINING * len(rows))]) for rows in by_digit]
    chosen = np.concatenate([before if training else after for before, after in parts])
    grey = (pixels[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    names = _chosen(classes, "0123456789", "the embedded digits")
    return _in_memory("scikit-learn digits", grey.repeat(3, axis=-1), digits[chosen], "0123456789", names)


def _in_memory(
    source: str, pixels: np.ndarray, targets: np.ndarray, all_names: Sequence[str], names: tuple[str, ...]
) -> Images:
    """From pixels of shape (N, height, width, 3), uint8."""
    rows = np.concatenate([np.flatnonzero(targets == all_names.index(name)) for name in names])
    labels = torch.tensor([names.index(all_names[target]) for target in targets[rows]])
    pixels = np.ascontiguousarray(pixels[rows])

    def fingerprint() -> str:
        return hashlib.sha256(pixels.tobytes() + labels.numpy().tobytes()).hexdigest()

    return Images(source, names, labels, lambda row: Image.fromarray(pixels[row]), fingerprint)


def _chosen(classes: Sequence[str] | None, there: Sequence[str], where: str) -> tuple[str, ...]:
    names = tuple(there if classes is None else classes)
    if len(there) < 2:
        raise ValueError(f"{where}: got {' and '.join(there) or 'no'} class, expected at least two to tell apart.")
    if not set(names) <= set(there) or len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(
            f"--classes: got {', '.join(names) or 'none'}; expected at least two different ones of those in {where}: "
            f"{', '.join(there)}."
        )
    return names


def _looks_like_an_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")


def _rgb(read: Callable[[], bytes], where: str | Path) -> Image.Image:
    try:
        with Image.open(io.BytesIO(read())) as image:
            # Otherwise Pillow warns of palettes with transparency, and of nothing else.
            return (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB")
    except Exception as error:  # the decoders of damaged files raise whatever comes to their minds
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{where} cannot be read as an image ({reason}); replace or delete it.") from error


def _digest(facts: Iterable[object]) -> str:
    return hashlib.sha256(repr(list(facts)).encode()).hexdigest()
