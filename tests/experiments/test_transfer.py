"""Quantum transfer learning: pre-trained networks, the cache of features, the experiments ``transfer`` and ``pretrain``."""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import CONFIGS, assert_same_run, ctrl_c_at, metrics, result, start
from torchvision.models import ResNet18_Weights, resnet18, resnet34

from experiments.__main__ import main
from experiments.common.classifiers import quantum_layers
from experiments.common.options import parse
from experiments.common.runs import RunFolder
from experiments.common.work import Work
from experiments.common.workplace import open_fabric
from experiments.transfer.backbones import View, imagenet_backbone, load_backbone, new_network, save_backbone
from experiments.transfer.features import AugmentedFeatures, cached_features, one_of_the_crops
from experiments.transfer.head_study import STUDY
from experiments.transfer.heads import new_head
from experiments.transfer.images import load_images
from experiments.transfer.pretraining import _AS_IT_SUITS
from experiments.transfer.transfer_learning import EXPERIMENT
from experiments.transfer.transfer_settings import PretrainSettings, TransferSettings

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = View(resize=40, crop=32)


def weights_file(folder: Path, network: str = "resnet18", *, seed: int = 1, view: View = SMALL) -> Path:
    torch.manual_seed(seed)
    path = folder / f"{network}-{seed}-{view.resize}.pt"
    path.write_bytes(save_backbone(new_network(network, 3), network, view, ("x", "y", "z"), "made up"))
    return path


@pytest.fixture(scope="session")
def resnet_made_once(tmp_path_factory):
    return weights_file(tmp_path_factory.mktemp("resnet"))


@pytest.fixture
def resnet(tmp_path, resnet_made_once):
    """Under a name of the test's own, since a copy is as long as a ResNet."""
    path = tmp_path / resnet_made_once.name
    path.symlink_to(resnet_made_once)
    return path


@pytest.fixture(scope="module")
def backbone(resnet_made_once):
    """For tests that take features and leave the network as it is."""
    return load_backbone(resnet_made_once)


@pytest.fixture
def quantum(tmp_path):
    return weights_file(tmp_path, "quantum", view=View(8, 8))


def zeros_for(network: Callable[..., torch.nn.Module], **options: Any) -> dict[str, torch.Tensor]:
    """Weights of such a network, all of them the same number in memory."""
    with torch.device("meta"):
        model = network(**options)
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in model.state_dict().items()}


class TestBackbones:
    def test_what_was_saved(self, backbone):
        assert (backbone.network, backbone.view, backbone.num_features) == ("resnet18", SMALL, 512)
        assert backbone.trained_on == ("x", "y", "z")
        assert "made up" in backbone.name

    def test_features_are_what_the_last_layer_got(self, backbone):
        torch.manual_seed(1)
        model = new_network("resnet18", 3).eval()
        images = torch.rand(4, 3, 32, 32)
        features = backbone.features(images, CPU, seed=(0,))
        with torch.no_grad():
            assert torch.allclose(model.network.fc(features), model(images), atol=1e-5)

    def test_frozen(self, resnet):
        backbone = load_backbone(resnet)
        before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
        backbone.model.train()
        features = backbone.features(torch.rand(8, 3, 32, 32), CPU, seed=(0,))
        assert not features.requires_grad
        assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
        torch.testing.assert_close(dict(backbone.model.state_dict()), before, rtol=0, atol=0)

    def test_dressed_last_layer(self, tmp_path):
        """The features are what its first linear layer gets, and the circuit is gone."""
        backbone = load_backbone(weights_file(tmp_path, "resnet18-dressed"))
        torch.manual_seed(1)
        model = new_network("resnet18-dressed", 3).eval()
        images = torch.rand(4, 3, 32, 32)
        with torch.no_grad():
            scores = model.network.fc(backbone.features(images, CPU, seed=(0,)))
            assert torch.allclose(scores, model(images), atol=1e-5)
        assert (backbone.num_features, len(quantum_layers(model)), len(quantum_layers(backbone.model))) == (512, 1, 0)

    @pytest.mark.parametrize("network", ["resnet18", "quantum"])
    def test_features_do_not_depend_on_the_batch(self, backbone, quantum, network):
        backbone = load_backbone(quantum) if network == "quantum" else backbone
        images = torch.rand(5, 3, 32, 32)
        together = backbone.features(images, CPU, seed=(0,))
        alone = torch.cat([backbone.features(image[None], CPU, seed=(0,)) for image in images])
        assert torch.allclose(together, alone, atol=1e-5)

    def test_shots_follow_from_the_seed(self, quantum):
        backbone = load_backbone(quantum, shots=20)
        images = torch.rand(5, 3, 32, 32)
        one, two, three = (backbone.features(images, CPU, seed=seed) for seed in ((1, 2), (1, 2), (1, 3)))
        assert torch.equal(one, two)
        assert not torch.equal(one, three)

    def test_torchvision_file(self, tmp_path):
        """As torchvision distributes it: 1000 classes; old files do not count batches and are no zip files."""
        model = resnet18(num_classes=1000)
        weights = model.state_dict()
        uncounted = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
        torch.save(weights, tmp_path / "new.pth")
        torch.save(uncounted, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        images = torch.rand(2, 3, 64, 64)
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        model.fc = torch.nn.Identity()
        with torch.no_grad():
            expected = model.eval()((images - mean) / std)
        for name in ("new.pth", "old.pth"):
            backbone = load_backbone(tmp_path / name)
            assert backbone.view == View(resize=256, crop=224), name
            assert "ant" in backbone.trained_on, name
            assert torch.equal(backbone.features(images, CPU, seed=(0,)), expected), name

    def test_view_is_that_of_the_weights(self):
        """Ours and torchvision's own give the same, but for the normalisation."""
        image = Image.fromarray(np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8))
        theirs = ResNet18_Weights.IMAGENET1K_V1.transforms()
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (theirs.mean, theirs.std))
        assert torch.allclose(View(resize=256, crop=224)(image), theirs(image) * std + mean, atol=1e-6)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (lambda: zeros_for(resnet34, num_classes=10), "holds other weights"),
            (lambda: {"fc.bias": torch.zeros(3)}, "holds other weights"),
            (lambda: {1: torch.zeros(3), "a": 2}, "holds other weights"),
            (lambda: [1, 2], "holds a list"),
            (lambda: {"network": "resnet18"}, "lacks what belongs to the weights"),
            (
                lambda: {"network": "vgg", "view": vars(View(8, 8)), "trained_on": [], "source": "", "model": {}},
                "holds a network 'vgg'",
            ),
            (lambda: {**zeros_for(resnet18), "conv1.weight": torch.full((64, 3, 7, 7), np.nan)}, "not finite"),
            (lambda: Path("an object"), "no file of weights that can be read"),
            (b"", "no file of weights that can be read"),
            (b"These are no weights.", "no file of weights that can be read"),
            (b"PK\x03\x04 and so on", "no file of weights that can be read"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path, content, said):
        if isinstance(content, bytes):
            (tmp_path / "weights.pt").write_bytes(content)
        else:
            torch.save(content(), tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=said) as refused:
            load_backbone(tmp_path / "weights.pt")
        assert "weights.pt" in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="'imagenet' or 'pretrain'"):
            load_backbone(tmp_path / "nowhere.pt")

    def test_imagenet_without_a_network(self, tmp_path, monkeypatch):
        def unreachable(*arguments, **options):
            raise OSError("Name or service not known")

        monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(OSError, match=r"could not download them \(Name or service not known\); .* --weights PATH"):
            imagenet_backbone("resnet18")


class TestCache:
    @pytest.fixture
    def cache(self, tmp_path):
        return RunFolder(tmp_path / "cache")

    @staticmethod
    def features(pictures, backbone, cache, *, part: int = 0):
        images = load_images(str(pictures), data_root=None, classes=["a", "b"])[part]
        return cached_features(images, backbone, cache, CPU, circuit={"shots": 10})

    @staticmethod
    def files(cache) -> list[Path]:
        return sorted(cache.path.iterdir())

    def test_same_bits_without_computing(self, pictures, backbone, cache, monkeypatch):
        before = self.features(pictures, backbone, cache)
        assert before.shape == (12, 512)
        assert len(self.files(cache)) == 1
        monkeypatch.setattr("experiments.transfer.features._compute", None)
        assert torch.equal(self.features(pictures, backbone, cache), before)

    @pytest.mark.parametrize("change", ["image", "name", "removed", "weights", "view", "version", "part"])
    def test_anything_that_matters_makes_it_compute(self, pictures, quantum, cache, monkeypatch, change):
        backbone = load_backbone(quantum)
        before, options = self.features(pictures, backbone, cache), {}
        path = pictures / "train" / "a" / "3.png"
        if change == "image":
            Image.new("RGB", (9, 9)).save(path)
        elif change == "name":
            path.rename(path.with_name("9.png"))
        elif change == "removed":
            path.unlink()
        elif change == "weights":
            backbone = load_backbone(weights_file(quantum.parent, "quantum", seed=2, view=View(8, 8)))
        elif change == "view":
            backbone = load_backbone(weights_file(quantum.parent, "quantum", view=View(9, 8)))
        elif change == "version":
            monkeypatch.setattr("experiments.transfer.features.PIL.__version__", "0.1")
        else:
            options = {"part": 1}
        after = self.features(pictures, backbone, cache, **options)
        assert len(self.files(cache)) == 2
        assert torch.equal(after, before) == (change == "version")

    def test_shots_do_not_depend_on_what_is_cached(self, pictures, quantum, cache):
        one, two = (load_backbone(quantum, shots=10) for _ in range(2))
        one = [self.features(pictures, one, cache, part=part) for part in (0, 1)]
        shutil.rmtree(cache.path)
        two = [self.features(pictures, two, cache, part=part) for part in (1, 0)]
        assert torch.equal(one[0], two[1])
        assert torch.equal(one[1], two[0])

    @pytest.mark.parametrize("damage", ["truncated", "empty", "text", "zeros inside", "of other images", "double"])
    def test_damaged_file_is_noticed(self, pictures, backbone, cache, capsys, damage):
        before = self.features(pictures, backbone, cache)
        (path,) = self.files(cache)
        good = path.read_bytes()
        if damage == "of other images":
            self.features(pictures, backbone, cache, part=1)
            other = next(file for file in self.files(cache) if file != path)
            path.write_bytes(other.read_bytes())
        elif damage == "double":
            arrays = cache.read_arrays(path.name)
            cache.write_arrays(path.name, key=arrays["key"], features=arrays["features"].astype(float))
        else:
            zeros = good[:300] + bytes(1000) + good[1300:]
            contents = {"truncated": good[: len(good) // 2], "empty": b"", "text": b"nothing", "zeros inside": zeros}
            path.write_bytes(contents[damage])
        capsys.readouterr()
        assert torch.equal(self.features(pictures, backbone, cache), before)
        assert f"{path} " in capsys.readouterr().out
        assert torch.equal(self.features(pictures, backbone, cache), before)
        assert not capsys.readouterr().out

    def test_flipped_bytes_never_change_features(self, pictures, quantum, cache):
        """Each is noticed, or is where it does not matter."""
        backbone = load_backbone(quantum)
        images = load_images(str(pictures), data_root=None, classes=["a", "b"])[1]

        def features() -> torch.Tensor:
            return cached_features(images, backbone, cache, CPU, circuit={})

        before = features()
        (path,) = self.files(cache)
        good = path.read_bytes()
        places = {*range(0, 200, 11), *range(200, len(good), len(good) // 10), *range(len(good) - 150, len(good), 7)}
        for place in sorted(places):
            content = bytearray(good)
            content[place] ^= 0xFF
            path.write_bytes(content)
            assert torch.equal(features(), before), place

    def test_damaged_image_is_named_and_nothing_cached(self, pictures, backbone, cache):
        (pictures / "train" / "b" / "2.png").write_bytes(b"oops")
        with pytest.raises(ValueError, match=r"b/2\.png cannot be read as an image"):
            self.features(pictures, backbone, cache)
        assert not cache.path.exists()

    def test_full_disk(self, pictures, backbone, cache, monkeypatch):
        genuine = os.fsync

        def full(number: int) -> None:
            genuine(number)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device while .* bytes of"):
            self.features(pictures, backbone, cache)
        assert not self.files(cache)

    def test_augmented(self, pictures, backbone):
        images = load_images(str(pictures), data_root=None)[0]
        examples, rows = AugmentedFeatures(images, backbone, CPU), torch.tensor([3, 1])
        torch.manual_seed(1)
        one, labels = examples.batch(rows, training=True)
        two, _ = examples.batch(rows, training=True)
        torch.manual_seed(1)
        assert torch.equal(examples.batch(rows, training=True)[0], one)
        assert not torch.equal(one, two)
        assert torch.equal(labels, images.labels[rows])
        plain = torch.stack([backbone.view(images.decode(row)) for row in rows.tolist()])
        assert torch.equal(examples.batch(rows, training=False)[0], backbone.features(plain, CPU, seed=(0,)))
        assert examples.batch(rows[:0], training=True)[0].shape == (0, 512)


class TestHeads:
    @pytest.mark.parametrize(("reupload", "degree"), [(False, 1), (True, 3)])
    def test_one_qubit_has_a_closed_form(self, reupload, degree):
        """H and turns about Y by the input (once, or before each layer) and by the weights: <Z> = -sin of their sum."""
        torch.manual_seed(0)
        net = new_head(TransferSettings(scheme="CQ", num_qubits=1, depth=3, reupload=reupload, weight_spread=1.0), 2, 2)
        features, weights = torch.randn(5, 2), net.quantum.get_parameter("weights")
        assert weights.abs().max() > 0.1
        angles = torch.tanh(net.pre(features)) * (torch.pi / 2)
        torch.testing.assert_close(net.quantum_features(features), -torch.sin(degree * angles + weights.sum()))

    @pytest.mark.parametrize("scheme", ["CQ", "CC"])
    def test_of_crops(self, scheme):
        """The mean of their probabilities; of a single crop, and with the same weights, what the plain head gives."""
        settings = TransferSettings(scheme=scheme, num_qubits=2, depth=1, crops=5)
        torch.manual_seed(0)
        head, plain = new_head(settings, 3, 2), new_head(replace(settings, crops=1), 3, 2)
        plain.load_state_dict(head.state_dict())
        features = 3 * torch.randn(4, 5, 3)
        torch.testing.assert_close(head(features).exp(), plain(features).softmax(dim=2).mean(dim=1))
        assert torch.equal(head(features[:, 0]), plain(features[:, 0]))


class TestCrops:
    FIVE = replace(SMALL, crops=5)

    def test_places(self):
        image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        squares = [pixels[:, top : top + 32, left : left + 32] for top in (0, 8) for left in (0, 18)]
        torch.testing.assert_close(self.FIVE(image), torch.stack([*squares, SMALL(image)]))

    @pytest.mark.parametrize("mirror", [False, True])
    def test_features(self, pictures, backbone, tmp_path, mirror):
        images = load_images(str(pictures), data_root=None, classes=["a", "b"])[1]
        backbone = replace(backbone, view=replace(self.FIVE, mirror=mirror))
        cache = RunFolder(tmp_path / "cache")
        features, again = (cached_features(images, backbone, cache, CPU, circuit={}) for _ in range(2))
        assert torch.equal(features, again)
        pixels = images.seen(torch.tensor([4]), backbone.view)[0]
        torch.testing.assert_close(features[4], backbone.features(pixels, CPU, seed=(0,)), rtol=1e-4, atol=1e-5)
        assert features.shape == (6, 5, 512)

    def test_one_of_them_for_each_image(self):
        features = torch.arange(20).reshape(4, 5, 1)
        torch.manual_seed(0)
        drawn = torch.stack([one_of_the_crops(features)[:, 0] for _ in range(100)])
        assert torch.equal(drawn // 5, torch.arange(4).expand(100, 4))
        assert all(len((drawn[:, image]).unique()) == 5 for image in range(4))
        assert (drawn % 5 != drawn[:, :1] % 5).any()

    def test_a_run_and_what_it_costs(self, transfer, tmp_path, capsys):
        """Training takes one crop of an image, a test all five."""
        options = ["--scheme", "CQ", "--crops", "5", "--reupload", "true", "--depth", "2", "--epochs", "1"]
        options += ["--gradient", "parameter_shift"]
        assert transfer(*options, "--dry-run") == 0
        printed = capsys.readouterr().out
        shifts = 2 * (2 * 4 + 2 * 4)  # two for each input of each layer, and for each weight
        circuits = 12 * (1 + shifts) + 6 * 5
        assert "and five crops of each image." in printed
        assert f"The run of 1 epochs: {circuits} circuits" in printed
        assert transfer(*options, "--run-dir", "run") == 0
        assert result(tmp_path / "run")["circuits"] == circuits
        cell = {"part": "devices", "run": "run", "seed": 0, "backend": "statevector", "shots": (), "repeats": 1}
        (exact,) = STUDY.measure(cell, np.random.SeedSequence(0))
        assert exact["accuracy"] == pytest.approx(result(tmp_path / "run")["test_accuracy"])


@pytest.fixture
def transfer(pictures, tmp_path, resnet, quantum, monkeypatch):
    """Runs the experiment on two of the small classes; returns the exit status."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        small = ["--dataset", str(pictures), "--classes", "a,b", "--epochs", "2", "--lr", "0.01"]
        networks = ["--weights", str(resnet), "--quantum-weights", str(quantum)]
        return main(["transfer", *small, *networks, *arguments])

    return run


class TestTransfer:
    @pytest.mark.figures
    @pytest.mark.usefixtures("one_picture_of_each")
    @pytest.mark.slow
    def test_schemes(self, transfer, tmp_path, folder):
        assert transfer("--scheme", "CC, CQ,QC,QQ", "--run-dir", str(folder)) == 0
        numbers = {"config.yaml", "metrics.csv", "result.json", "checkpoint.pt", "predictions.csv", "shown.npz"}
        for scheme in ("CC", "CQ", "QC", "QQ"):
            expected = numbers | {"tensorboard", "loss.png", "predictions.png", "confusion.png"}
            expected |= {".lock"} | ({"circuit.png"} if scheme[1] == "Q" else set())
            assert {path.name for path in (folder / scheme).iterdir()} == expected
            assert result(folder / scheme)["scheme"] == scheme
            assert (result(folder / scheme)["circuits"] > 0) == (scheme[1] == "Q")
        assert {"comparison.png", "summary.csv", "result.json"} <= {path.name for path in folder.iterdir()}
        assert result(folder / "CC")["head_parameters"] == 2082
        assert result(folder / "CQ")["head_parameters"] == 2086
        assert len(list((tmp_path / "runs" / "features").iterdir())) == 4  # two networks, training and test

    def test_dry_run_says_what_a_run_then_costs(self, transfer, tmp_path, capsys):
        options = ["--scheme", "QQ", "--shots", "50", "--gradient", "parameter_shift", "--depth", "1"]
        assert transfer(*options, "--dry-run") == 0
        printed = capsys.readouterr().out
        assert not (tmp_path / "runs").exists()
        assert transfer(*options, "--run-dir", "run") == 0
        came_to = result(tmp_path / "run")
        assert f"The run of 2 epochs: {came_to['circuits']:,} circuits, {came_to['shots']:,} shots" in printed
        assert f"Features: {came_to['feature_circuits']:,} circuits, {came_to['feature_shots']:,} shots" in printed
        assert came_to["feature_shots"] == 18 * 50
        assert "12 images to train on, 6 to test" in printed

    def test_features_of_noise_of_ones_own_are_others(self, transfer, tmp_path):
        (tmp_path / "noise.yaml").write_text("one_as_zero: 0.5\n")
        options = ["--scheme", "QC", "--backend", "aer", "--shots", "20", "--epochs", "1"]
        for noise in ([], ["--noise", "noise.yaml"]):
            assert transfer(*options, *noise) == 0
        assert len(list((tmp_path / "runs" / "features").iterdir())) == 4

    @pytest.mark.parametrize("options", [["--scheme", "CQ"], ["--scheme", "QQ", "--augment", "--shots", "20"]])
    @pytest.mark.slow
    def test_interrupted_run_resumes_to_the_last_bit(self, transfer, tmp_path, options):
        assert transfer(*options, "--run-dir", "straight") == 0
        with ctrl_c_at(6, "cross_entropy"):  # in the second epoch of three steps and a test
            assert transfer(*options, "--run-dir", "broken") == 130
        state = RunFolder(tmp_path / "broken").read_checkpoint()
        assert (state["epoch"], state["step"]) == (1, 2)
        assert main(["transfer", "--resume", "--run-dir", "broken"]) == 0
        assert_same_run(tmp_path / "straight", tmp_path / "broken")

    @pytest.mark.figures
    @pytest.mark.usefixtures("one_picture_of_each")
    @pytest.mark.slow
    def test_figures_without_the_data(self, transfer, tmp_path, pictures, resnet, quantum):
        assert transfer("--scheme", "CQ,CC", "--run-dir", "run") == 0
        shutil.rmtree(pictures)
        shutil.rmtree(tmp_path / "runs")
        resnet.unlink()
        quantum.unlink()
        figures = sorted((tmp_path / "run").rglob("*.png"))
        assert len(figures) == 8
        for figure in figures:
            figure.unlink()
        assert main(["plot", "run"]) == 0
        assert sorted((tmp_path / "run").rglob("*.png")) == figures

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--scheme", "CX"], "--scheme: got 'CX'"),
            (["--scheme", "CQ,CQ"], "expected one or more of CC, CQ, QC, QQ"),
            (["--backend", "quantum"], "expected one of 'statevector', 'aer', 'pauli', 'noisy:NAME', 'fake:NAME'"),
            (["--gradient", "guess"], "expected one of"),
            (["--shots", "10", "--gradient", "adjoint"], "needs exact simulation"),
            (["--classes", "a,z"], "--classes: got a, z"),
            (["--classes", "a,b,c"], "--weights pretrain: there is too little beside the target a,b,c"),
            (["--scheme", "CC,QC", "--weights", "FILE", "--classes", "a,b,c"], "--quantum-weights pretrain"),
            (["--scheme", "CC,QC", "--quantum-weights", "imagenet"], "--quantum-weights: got 'imagenet'"),
            (["--weights", "nowhere.pt"], "got 'nowhere.pt'"),
            (["--scheme", "QC,CC", "--weights", "QUANTUM"], "holds a network quantum, expected resnet18 for scheme CC"),
            (["--augment", "--crops", "5"], "--crops: got 5 with --augment"),
            (["--dataset", "nowhere"], "nowhere"),
            (["--dataset", "ants-bees", "--classes", "ants,bees"], "no data root"),
        ],
    )
    def test_refused_before_anything_is_trained_or_written(
        self, transfer, tmp_path, capsys, monkeypatch, resnet, quantum, arguments, said
    ):
        monkeypatch.delenv("QTB_DATA", raising=False)
        files = {"FILE": str(resnet), "QUANTUM": str(quantum)}
        pretrain = ["--scheme", "CC,CQ", "--weights", "pretrain", "--quantum-weights", "pretrain"]
        assert transfer(*pretrain, *(files.get(argument, argument) for argument in arguments)) == 1
        printed = capsys.readouterr().err
        assert said in printed
        assert printed.count("\n") == 1
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize("options", [[], ["--augment"], ["--quantum-weights", "pretrain"]])
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_damaged_image_is_refused_before_the_training(self, transfer, pictures, tmp_path, capsys, options, split):
        (pictures / split / "b" / "1.png").write_bytes(b"oops")
        assert transfer("--scheme", "QC", *options, "--run-dir", "run") == 1
        assert f"{split}/b/1.png cannot be read as an image" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "runs" / "pretrained").exists()

    def test_says_when_the_network_knows_the_target(self, transfer, tmp_path, capsys):
        torch.manual_seed(0)
        known = save_backbone(new_network("quantum", 2), "quantum", View(8, 8), ("a", "q"), "made up")
        (tmp_path / "known.pt").write_bytes(known)
        assert transfer("--scheme", "QC", "--quantum-weights", "known.pt", "--epochs", "1") == 0
        assert "has seen a before" in capsys.readouterr().out


class TestPretrain:
    @pytest.mark.slow
    def test_trains_on_the_other_classes_once(self, transfer, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(_AS_IT_SUITS, "resnet18", PretrainSettings(epochs=2))
        for name in ("one", "two"):
            assert transfer("--weights", "pretrain", "--scheme", "CC", "--epochs", "1", "--run-dir", name) == 0
        assert capsys.readouterr().out.count("pre-training resnet18 on c,d") == 1
        assert_same_run(tmp_path / "one", tmp_path / "two")
        folder = tmp_path / "runs" / "pretrained" / "resnet18-pictures-without-a-b"
        assert load_backbone(folder / "backbone.pt").trained_on == ("c", "d")
        assert result(folder)["classes"] == ["c", "d"]
        assert (folder / "loss.png").is_file()

    @pytest.mark.slow
    def test_interrupted_within_a_transfer(self, transfer, tmp_path, capsys):
        options = ["--scheme", "QC", "--quantum-weights", "pretrain", "--epochs", "1"]
        assert transfer(*options, "--cache", "straight", "--run-dir", "one") == 0
        with ctrl_c_at(7, "cross_entropy"):  # in the fourth epoch of a step and a test
            assert transfer(*options, "--cache", "broken", "--run-dir", "two") == 130
        assert "goes on where it is now" in capsys.readouterr().out
        assert not (tmp_path / "two").exists()
        assert transfer(*options, "--cache", "broken", "--run-dir", "two") == 0
        name = "pretrained/quantum-pictures-without-a-b"
        assert_same_run(tmp_path / "straight" / name, tmp_path / "broken" / name)
        assert_same_run(tmp_path / "one", tmp_path / "two")

    def test_waits_for_another_run_that_trains_it(self, transfer, tmp_path, capsys, monkeypatch):
        options = ["--scheme", "QC", "--quantum-weights", "pretrain", "--epochs", "1"]
        assert transfer(*options, "--cache", "there", "--run-dir", "one") == 0
        name = "pretrained/quantum-pictures-without-a-b"
        folder, at_work, waited_for = RunFolder(tmp_path / "here" / name), threading.Event(), threading.Event()

        def train() -> None:
            with folder.locked():
                at_work.set()
                assert waited_for.wait(60)
                shutil.copytree(tmp_path / "there" / name, folder.path, dirs_exist_ok=True)

        monkeypatch.setattr("experiments.common.runs.print", lambda *said, **how: waited_for.set(), raising=False)
        other = threading.Thread(target=train)
        other.start()
        assert at_work.wait(60)
        capsys.readouterr()
        assert transfer(*options, "--cache", "here", "--run-dir", "two") == 0
        other.join()
        assert "pre-training" not in capsys.readouterr().out
        assert_same_run(tmp_path / "one", tmp_path / "two")

    def test_for_hardware_is_simulated(self, folder):
        """The device is for the circuits that the transfer measures."""
        settings = TransferSettings(backend="ibm:fake_manila", scheme="QC")
        work = Work("transfer", settings, RunFolder(folder), open_fabric("cpu"), device=object())
        own = work.elsewhere("pretrain", PretrainSettings(network="quantum"), RunFolder(folder))
        assert (own.device, own.layer_options()["backend"]) == (None, "statevector")

    def test_network_that_was_trained_otherwise(self, transfer, tmp_path, capsys):
        options = ["--scheme", "QC", "--quantum-weights", "pretrain", "--epochs", "1"]
        assert transfer(*options) == 0
        path = tmp_path / "runs" / "pretrained" / "quantum-pictures-without-a-b" / "config.yaml"
        settings = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**settings, "data_root": "elsewhere", "download": True}))
        assert transfer(*options) == 0
        path.write_text(yaml.safe_dump({**settings, "lr": 0.5}))
        assert transfer(*options) == 1
        assert "was trained with other settings; move it away" in capsys.readouterr().err

    def test_by_itself(self, pictures, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options = ["--dataset", str(pictures), "--exclude", "a, b", "--epochs", "1", "--image-size", "16"]
        assert main(["pretrain", *options, "--augment", "shift-flip", "--run-dir", "run"]) == 0
        backbone = load_backbone(tmp_path / "run" / "backbone.pt")
        assert (backbone.trained_on, backbone.view) == (("c", "d"), View(16, 16))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--exclude", "cats"], "--exclude: got cats, expected some of a, b, c, d"),
            (["--exclude", "a,b,c"], "leaves d of"),
            (["--image-size", "4"], "--image-size: got 4"),
            (["--batch-size", "23"], "leaves a last batch of 1 of the 24 images"),
            (["--network", "quantum", "--backend", "quantum"], "expected one of 'statevector'"),
        ],
    )
    def test_refused(self, pictures, tmp_path, capsys, monkeypatch, arguments, said):
        monkeypatch.chdir(tmp_path)
        assert main(["pretrain", "--dataset", str(pictures), *arguments, "--run-dir", "run"]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


class TestConfigurations:
    @pytest.mark.parametrize(
        ("name", "accuracy", "expected"),
        [
            ("ants-bees", 0.967, (0.0004, 4, 30, 6, 0.1, 10)),
            ("dogs-cats", 0.827, (0.001, 8, 3, 5, 1.0, None)),
            ("planes-cars", 0.9605, (0.0007, 8, 3, 4, 0.1, 3)),
        ],
    )
    def test_published_settings(self, name, accuracy, expected):
        file = CONFIGS / f"transfer-{name}.yaml"
        settings = yaml.safe_load(file.read_text())
        assert settings["weights"] == "imagenet"
        names = ("lr", "batch_size", "epochs", "depth", "lr_gamma", "lr_step")
        assert all(settings[key] == value for key, value in zip(names, expected, strict=True) if value is not None)
        heads = EXPERIMENT.variants(parse("transfer", TransferSettings, ["--config", str(file)])[1])
        assert {head: EXPERIMENT.published(its) for head, its in heads.items()} == {"CQ": accuracy, "CC": None}
        for changed in (
            {"weights": "backbone.pt"},
            {"weights": "pretrain"},
            {"image_size": 64},
            {"depth": 1},
            {"folds": 5},
        ):
            assert EXPERIMENT.published(replace(heads["CQ"], **changed)) is None
        for other in ({"backbone": "efficientnet-lite0"}, {"mirror": True}):
            assert EXPERIMENT.published(replace(heads["CQ"], **other)) == accuracy

    def test_digits_is_the_default(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for arguments in ([], ["--config", str(CONFIGS / "transfer-digits.yaml")]):
            assert main(["transfer", *arguments, "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_fill_the_cache_at_once(pictures, resnet, tmp_path):
    """With a network, which one of them trains and the other waits for, and with features."""
    command = ["transfer", "--dataset", str(pictures), "--classes", "a,b", "--weights", str(resnet), "--scheme", "QC"]
    options = ["--epochs", "1", "--cache", str(tmp_path / "cache")]
    processes = [start(*command, *options, "--run-dir", str(tmp_path / name)) for name in ("one", "two")]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2
    for network in (tmp_path / "cache").glob("pretrained/*"):
        assert len(metrics(network)) == result(network)["epochs"] == 12


@pytest.mark.slow
def test_digits(tmp_path, monkeypatch):
    """Features of a network that never saw an eight or a nine tell them apart, even after a short pre-training."""
    monkeypatch.chdir(tmp_path)
    short = ["--image-size", "16", "--epochs", "1"]
    assert main(["pretrain", "--exclude", "8,9", *short, "--run-dir", "pretrained"]) == 0
    backbone = ["--weights", "pretrained/backbone.pt"]
    assert main(["transfer", *backbone, "--epochs", "5", "--lr", "0.004", "--run-dir", "run"]) == 0
    for scheme in ("CQ", "CC"):
        assert result(tmp_path / "run" / scheme)["test_accuracy"] > 0.85
