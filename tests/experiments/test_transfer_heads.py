"""Cross-validation in ``transfer``; ``transfer-heads`` on a small run; the features that come with the repository."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from runs import result, write_pictures
from scipy.stats import binomtest

from experiments.__main__ import main
from experiments.common.rows import Rows
from experiments.common.runs import RunFolder
from experiments.transfer.backbones import View, new_network, save_backbone
from experiments.transfer.cross_validation import Part, fold
from experiments.transfer.head_findings import accuracy_rows, mcnemar_rows
from experiments.transfer.head_settings import HeadSettings
from experiments.transfer.head_study import STUDY
from experiments.transfer.images import load_images
from experiments.transfer.stored_features import stored_features
from qiskit_torch_bridge import DressedQuantumNet

pytestmark = pytest.mark.usefixtures("no_pictures")


class TestFolds:
    def test_every_image_is_tested_on_once(self):
        labels = torch.tensor([0] * 11 + [1] * 7)
        parts = [fold(labels, 3, number) for number in range(3)]
        assert torch.equal(torch.cat([tested for _, tested in parts]).sort().values, torch.arange(18))
        for rest, tested in parts:
            assert torch.equal(torch.cat([rest, tested]).sort().values, torch.arange(18))
            assert labels[tested].bincount().tolist() in ([4, 2], [4, 3], [3, 2], [3, 3])
        assert torch.equal(fold(labels, 3, 4)[1], parts[1][1])

    @pytest.mark.parametrize("folds", [1, 4])
    def test_too_few_images(self, folds):
        with pytest.raises(ValueError, match=f"--folds: got {folds}, expected from 2 to 3"):
            fold(torch.tensor([0, 0, 0, 1, 1, 1, 1]), folds, 0)

    def test_a_part_has_the_rows_that_it_should(self):
        rows = Rows(torch.arange(10.0)[:, None], torch.arange(10))
        part = Part(rows, torch.tensor([7, 2, 5]))
        inputs, labels = part.batch(torch.tensor([2, 0]), training=True)
        assert (len(part), inputs.flatten().tolist(), labels.tolist()) == (3, [5, 7], [5, 7])

    def test_the_pictures_of_a_part(self, pictures):
        images = load_images(str(pictures), data_root=None, classes=["a", "b"])[0]
        part = images.part(torch.tensor([8, 1]))
        assert (part.labels.tolist(), len(part)) == ([1, 0], 2)
        view = View(8, 8)
        assert torch.equal(part.seen(torch.tensor([0]), view), images.seen(torch.tensor([8]), view))
        assert part.fingerprint() != images.part(torch.tensor([1, 8])).fingerprint() != images.fingerprint()

    @pytest.mark.slow
    def test_a_run(self, trained):
        """The test images are not looked at: each seed is tested on its part of the training images."""
        numbers = []
        for seed in (0, 1):
            folder = RunFolder(trained / "folds" / f"CC-seed{seed}")
            rows = folder.read_rows("predictions.csv")
            assert [row["label"] for row in rows] == [0, 0, 1, 1]  # of twelve images in three parts
            numbers.append(folder.read_arrays("shown.npz")["images"])
        assert not np.array_equal(*numbers)

    @pytest.mark.slow
    def test_refused(self, trained, folder, capsys):
        command = ["transfer", "--config", str(trained / "config.yaml"), "--folds", "7", "--run-dir", str(folder)]
        assert main(command) == 1
        assert "--folds: got 7, expected from 2 to 6" in capsys.readouterr().err
        assert not folder.exists()


def decisions(circuit, twin, *, seed=0, labels=None):
    labels = [1] * len(circuit) if labels is None else labels
    columns = enumerate(zip(labels, circuit, twin, strict=True))
    return [{"seed": seed, "image": i, "label": label, "circuit": c, "twin": t} for i, (label, c, t) in columns]


class TestMcNemar:
    def test_counts_and_p(self):
        only_circuit, only_twin = 9, 2
        circuit = [1] * only_circuit + [0] * only_twin + [1] * 20 + [0] * 3
        twin = [0] * only_circuit + [1] * only_twin + [1] * 20 + [0] * 3
        row = mcnemar_rows(decisions(circuit, twin))[0]
        assert (row["only the circuit right"], row["only the twin right"], row["both right"]) == (9, 2, 20)
        assert row["p"] == binomtest(9, 11).pvalue
        tails = [1, 11, 55]  # of eleven fair coins, 0, 1 or 2 heads; and as many tails
        assert row["p"] == pytest.approx(2 * sum(tails) / 2**11)

    def test_no_difference(self):
        assert [row["p"] for row in mcnemar_rows(decisions([1, 0, 1], [1, 0, 1]))] == [1.0, 1.0]

    def test_majority_leaves_out_ties(self):
        """Image 0: the circuit has it right in two of two seeds, the twin in none. Image 1: in one of two, a tie."""
        rows = [*decisions([1, 1], [0, 1], seed=0), *decisions([1, 0], [0, 1], seed=1)]
        majority = mcnemar_rows(rows)[-1]
        assert (majority["heads"], majority["images"], majority["only the circuit right"]) == (
            "majority of the seeds",
            1,
            1,
        )


def test_errors_over_seeds_and_scatter_of_shots():
    accuracies = {0: [0.8, 0.9], 1: [0.9, 1.0], 2: [0.7, 0.8]}
    common = {"backend": "statevector", "shots": 100, "as_exact": 1.0}
    rows = [{"seed": seed, "accuracy": value, **common} for seed, values in accuracies.items() for value in values]
    (row,) = accuracy_rows(rows)
    assert row["accuracy"] == pytest.approx(0.85)
    assert row["accuracy, standard error"] == pytest.approx(0.1 / 3**0.5)  # of 0.85, 0.95 and 0.75
    assert row["scatter of the shots"] == pytest.approx(0.005**0.5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two seeds of circuit and twin on two of the small classes."""
    folder = tmp_path_factory.mktemp("transfer")
    torch.manual_seed(1)
    backbone = save_backbone(
        new_network("resnet18", 3), "resnet18", View(resize=40, crop=32), ("x", "y", "z"), "made up"
    )
    (folder / "backbone.pt").write_bytes(backbone)
    command = ["transfer", "--dataset", str(write_pictures(folder / "pictures")), "--classes", "a,b"]
    command += ["--weights", str(folder / "backbone.pt"), "--cache", str(folder), "--epochs", "2", "--lr", "0.01"]
    command += ["--seeds", "2"]
    assert main([*command, "--run-dir", str(folder / "run")]) == 0
    folds = ["--folds", "3", "--scheme", "CC"]
    assert main([*command, *folds, "--run-dir", str(folder / "run" / "folds")]) == 0
    return folder / "run"


class TestStudy:
    @pytest.mark.slow
    def test_a_run(self, trained, folder):
        options = ["--backends", "statevector", "noisy:manila", "--shots", "50", "1000", "--repeats", "3"]
        parts = ["--parts", "twins", "pictures", "devices"]
        command = ["transfer-heads", "--run", str(trained), *options, *parts, "--workers", "0"]
        assert main([*command, "--run-dir", str(folder)]) == 0
        heads = RunFolder(folder)
        assert {"pictures.png", "devices.png"} <= {path.name for path in folder.iterdir()}
        twins = heads.read_rows("twins.csv")
        assert len(twins) == 2 * 6
        for row in twins:
            predictions = RunFolder(trained / f"CQ-seed{row['seed']}").read_rows("predictions.csv")
            assert predictions[row["image"]]["predicted"] == row["circuit"]
        exact = [
            row for row in heads.read_rows("devices.csv") if row["backend"] == "statevector" and row["shots"] == ""
        ]
        for row in exact:
            assert row["as_exact"] == 1.0
            assert row["accuracy"] == result(trained / f"CQ-seed{row['seed']}")["test_accuracy"]
        assert len(heads.read_rows("devices.csv")) == 2 * 2 * (1 + 2 * 3)
        for row in heads.read_rows("pictures.csv"):
            assert Image.open(io.BytesIO(base64.b64decode(row["jpeg"]))).size == (10, 10)

    def test_price_is_that_of_the_layer(self, trained):
        settings = HeadSettings(run=str(trained), parts=("price",), priced="ibm:fake_manila", priced_shots=100)
        (cell,) = STUDY.make_cells(settings)
        tested, epoch = STUDY.measure(cell, np.random.SeedSequence(0))
        assert (tested["examples"], tested["circuits"], tested["shots"], tested["jobs"]) == (6, 6, 600, 1)
        # Two shifts for each of 4 inputs and 24 weights, and the value; of 12 images, in three steps of four.
        assert (epoch["examples"], epoch["circuits"], epoch["jobs"]) == (12, 12 * (1 + 2 * 28), 3)
        assert epoch["qpu_seconds"] > tested["qpu_seconds"] > 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--run", "RUN/nowhere"], "nowhere has no config.yaml"),
            (["--run", "RUN/CC-seed0"], "which has no training of scheme CQ"),
            (["--run", "RUN/CQ-seed1"], "which has no CC of seed 1"),
            (["--run", "RUN", "--backends", "quantum"], "expected one of"),
            (["--run", "RUN", "--priced", "fez"], "--priced: got 'fez'"),
        ],
    )
    @pytest.mark.slow
    def test_refused(self, trained, folder, capsys, arguments, said):
        arguments = [argument.replace("RUN", str(trained)) for argument in arguments]
        assert main(["transfer-heads", *arguments, "--run-dir", str(folder)]) == 1
        assert said in capsys.readouterr().err
        assert not folder.exists()


def test_features_that_come_with_the_repository():
    """A dressed circuit learns from them in seconds what the page on transfer learning says."""
    train, train_labels, test, test_labels = stored_features()
    assert (train.shape, test.shape) == ((244, 1280), (153, 1280))
    assert (train_labels.bincount().tolist(), test_labels.bincount().tolist()) == ([123, 121], [70, 83])
    torch.manual_seed(0)
    head = DressedQuantumNet(1280, 2, seed=0)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.004)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(train), train_labels).backward()
        optimizer.step()
    assert (head(test).argmax(dim=1) == test_labels).double().mean() > 0.9
