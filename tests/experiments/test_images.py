"""Images for transfer learning: folders, CIFAR-10, digits; and what is wrong with some of them."""

import os
import shutil
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from experiments.transfer.images import load_images


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images to train on and two to test on in each."""
    root = tmp_path / "pictures"
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cats", "dogs")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture(10 * label + number + 100 * count).save(root / split / name / f"{number}.png")
    return root


def load(folder, **options):
    return load_images(str(folder), data_root=None, **options)


class TestFolders:
    def test_labels_and_images(self, folder):
        train, test = load(folder)
        assert train.classes == test.classes == ("cats", "dogs")
        assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
        assert np.array_equal(train.decode(4), picture(311))
        assert train.source == "pictures"

    def test_classes_in_the_order_given(self, folder):
        train, _ = load(folder, classes=["dogs", "cats"])
        assert (train.classes, train.labels.tolist()) == (("dogs", "cats"), [0, 0, 0, 1, 1, 1])
        assert np.array_equal(train.decode(0), picture(310))

    def test_test_goes_before_val(self, folder):
        shutil.copytree(folder / "val", folder / "test")
        (folder / "test" / "cats" / "0.png").unlink()
        assert len(load(folder)[1]) == 3

    def test_what_is_an_image_by_its_name(self, folder):
        """As torchvision's ImageFolder has it: capitals do not matter, GIF files are none (ants/bees holds a stray one)."""
        cats = folder / "train" / "cats"
        (cats / "0.png").rename(cats / "0.PNG")
        picture(1).save(cats / "imageNotFound.gif")
        (cats / "notes.txt").write_text("not an image")
        (cats / "._1.png").write_bytes(b"what a Mac leaves behind")
        (folder / "train" / ".ipynb_checkpoints").mkdir()
        (cats / "deeper").mkdir()
        picture(7).save(cats / "deeper" / "more.jpeg")
        train, _ = load(folder)
        assert train.classes == ("cats", "dogs")
        assert train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
        train.check()

    @pytest.mark.parametrize(
        ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png")]
    )
    def test_modes(self, folder, mode, suffix):
        saved = picture(1, mode)
        saved.save(folder / "train" / "cats" / f"a.{suffix}")
        train, _ = load(folder)
        decoded = next(train.decode(row) for row in range(4) if row == 3)
        assert (decoded.mode, decoded.size) == ("RGB", (12, 10))
        if suffix == "png":
            assert np.array_equal(decoded, saved.convert("RGB"))

    def test_palette_with_transparency(self, folder):
        saved = picture(1, "P")
        saved.save(folder / "train" / "cats" / "3.png", transparency=bytes(range(256)))
        assert np.array_equal(load(folder)[0].decode(3), saved.convert("RGB"))

    def test_photographs_are_not_turned(self, folder):
        """ImageFolder does not look at EXIF orientation either, and the published numbers come from it."""
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(1).save(folder / "train" / "cats" / "3.jpg", exif=exif)
        assert load(folder)[0].decode(3).size == (12, 10)

    def test_ants_and_bees(self, data_root):
        train, test = load_images("ants-bees", data_root=data_root)
        assert (len(train), len(test), train.classes) == (244, 153, ("ants", "bees"))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no image": lambda content: b"This is a text file.",
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "header only": lambda content: content[:20],
    "garbage inside": lambda content: content[:60] + bytes(len(content) - 60),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "jpg"])
    def test_damaged_image(self, folder, suffix, damage):
        path = folder / "train" / "dogs" / f"9.{suffix}"
        picture(1, size=(64, 48)).save(path)
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
        train, test = load(folder)
        test.check()
        if damage == "garbage inside" and suffix in ("bmp", "webp"):  # no checksum of pixels: nobody can know
            train.check()
            return
        with pytest.raises(ValueError, match=rf"9\.{suffix} cannot be read as an image \(.+\); replace") as refused:
            train.check()
        assert "\n" not in str(refused.value)

    def test_image_that_is_gone(self, folder):
        train, _ = load(folder)
        (folder / "train" / "dogs" / "2.png").unlink()
        with pytest.raises(ValueError, match="No such file"):
            train.check()

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_empty_class(self, folder, split):
        for path in (folder / split / "dogs").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=f"{split}: no images in dogs"):
            load(folder)

    @pytest.mark.parametrize(("split", "said"), [("train", "train/CLASS"), ("val", "test/CLASS or val/CLASS")])
    def test_missing_split(self, folder, split, said):
        shutil.rmtree(folder / split)
        with pytest.raises(FileNotFoundError, match=said):
            load(folder)

    @pytest.mark.parametrize("classes", [["cats", "cows"], ["cats", "cats"], ["cats"]])
    def test_classes_that_cannot_be(self, folder, classes):
        with pytest.raises(ValueError, match=f"--classes: got {', '.join(classes)}; expected .* cats, dogs"):
            load(folder, classes=classes)

    def test_single_class(self, folder):
        shutil.rmtree(folder / "train" / "dogs")
        with pytest.raises(ValueError, match="got cats class, expected at least two"):
            load(folder)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_other_classes_in_one_part(self, folder, split):
        shutil.copytree(folder / split / "cats", folder / split / "cows")
        with pytest.raises(ValueError, match="expected the same classes"):
            load(folder)
        assert load(folder, classes=["cats", "dogs"])[0].classes == ("cats", "dogs")


class TestFingerprint:
    def test_same_images(self, folder, tmp_path):
        """Only content, names and order count: a copy elsewhere, made at another time, is the same."""
        shutil.copytree(folder, tmp_path / "copy" / "pictures", copy_function=shutil.copyfile)
        assert load(folder)[0].fingerprint() == load(tmp_path / "copy" / "pictures")[0].fingerprint()
        assert load(folder)[0].fingerprint() != load(folder)[1].fingerprint()

    @pytest.mark.parametrize(
        "change", ["content", "same size and time", "name", "added", "removed", "swapped", "order"]
    )
    def test_changes(self, folder, change):
        before = load(folder)[0].fingerprint()
        dogs, options = folder / "train" / "dogs", {}
        first, last = dogs / "0.png", dogs / "2.png"
        if change == "content":
            picture(77).save(first)
        elif change == "same size and time":
            content, time = bytearray(first.read_bytes()), first.stat().st_mtime_ns
            content[-1] ^= 1
            first.write_bytes(content)
            os.utime(first, ns=(time, time))
        elif change == "name":
            first.rename(dogs / "00.png")
        elif change == "added":
            picture(77).save(dogs / "3.png")
        elif change == "removed":
            last.unlink()
        elif change == "swapped":
            one, other = first.read_bytes(), last.read_bytes()
            first.write_bytes(other)
            last.write_bytes(one)
        else:
            options = {"classes": ["dogs", "cats"]}
        assert load(folder, **options)[0].fingerprint() != before


class TestDigits:
    def test_parts_have_no_image_in_common(self):
        train, test = load_images("digits", data_root=None)
        assert train.classes == tuple("0123456789")
        assert len(train) + len(test) == 1797
        mine = {np.asarray(train.decode(row)).tobytes() for row in range(len(train))}
        assert not any(np.asarray(test.decode(row)).tobytes() in mine for row in range(len(test)))

    def test_nothing_depends_on_the_classes_beside(self):
        """What is tested on for one target was not trained on for another."""
        pair, _ = load_images("digits", data_root=None, classes=["9", "8"])
        everything, _ = load_images("digits", data_root=None)
        eights = (everything.labels == 8).nonzero().flatten()
        rows = (pair.labels == 1).nonzero().flatten()
        assert len(rows) == len(eights)
        for mine, theirs in zip(rows.tolist(), eights.tolist(), strict=True):
            assert np.array_equal(pair.decode(mine), everything.decode(theirs))


class TestCifar:
    @pytest.fixture
    def archive(self, folder, tmp_path):
        with zipfile.ZipFile(tmp_path / "cifar10_images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*.png")):
                split = "train" if "train" in path.parts else "test"
                archive.write(path, f"cifar10_images/{split}/{path.parent.name}/{path.name}")
            archive.writestr("cifar10_images/train/cats/Thumbs.db", b"")
        return tmp_path / "cifar10_images.zip"

    def test_zip_is_the_folder(self, archive, folder):
        for mine, theirs in zip(load_images("cifar10", data_root=archive.parent), load(folder), strict=True):
            assert mine.classes == theirs.classes
            assert mine.labels.tolist() == theirs.labels.tolist()
            for row in range(len(mine)):
                assert np.array_equal(mine.decode(row), theirs.decode(row))
            mine.check()

    def test_unpacked(self, folder, tmp_path):
        folder.rename(tmp_path / "cifar10_images")
        assert len(load_images("cifar10", data_root=tmp_path)[0]) == 6

    def test_fingerprint_of_the_zip(self, archive):
        before = load_images("cifar10", data_root=archive.parent)[0].fingerprint()
        assert load_images("cifar10", data_root=archive.parent)[0].fingerprint() == before
        with zipfile.ZipFile(archive, "a") as zipped:
            zipped.writestr("cifar10_images/train/cats/9.png", b"another")
        assert load_images("cifar10", data_root=archive.parent)[0].fingerprint() != before

    def test_damaged_zip(self, archive):
        content = archive.read_bytes()
        archive.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="no zip file that can be read"):
            load_images("cifar10", data_root=archive.parent)

    def test_zip_of_something_else(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "cifar10_images.zip", "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(FileNotFoundError, match="expected it to hold cifar10_images/train/CLASS"):
            load_images("cifar10", data_root=tmp_path)

    @pytest.mark.parametrize("flip", [40, 60, 100])
    def test_damaged_member(self, archive, flip):
        with zipfile.ZipFile(archive) as zipped:
            start = zipped.infolist()[0].header_offset + 30 + len(zipped.infolist()[0].filename)
        content = bytearray(archive.read_bytes())
        content[start + flip] ^= 0xFF
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"zip: cifar10_images/train/cats/0.png cannot be read as an image"):
            load_images("cifar10", data_root=archive.parent)[0].check()

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected it to hold cifar10_images\.zip"):
            load_images("cifar10", data_root=tmp_path)
        with pytest.raises(FileNotFoundError, match="--data-root or QTB_DATA"):
            load_images("cifar10", data_root=None)

    def test_download_by_several_processes_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="--download: got several processes"):
            load_images("cifar10", data_root=tmp_path, download=True)
        assert not list(tmp_path.iterdir())

    def test_the_real_one(self, data_root):
        train, test = load_images("cifar10", data_root=data_root, classes=["dog", "cat"])
        assert train.labels.bincount().tolist() == [5000, 5000]
        assert test.labels.bincount().tolist() == [1000, 1000]
        assert train.decode(0).size == (32, 32)
