"""Random damage to results, to the ledger's copies of them and to recordings: the right numbers, or one clear error.

Never other numbers, never an error of whatever library met the damage first.
"""

import copy
import io
import json
import random
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("qiskit_ibm_runtime")

from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_training import FEATURES, ibm, layer_on
from test_fake_devices import noiseless, textbook_layer
from test_wrong_results import OPTIONS

from qiskit_torch_bridge import HardwareError, IBMBackend, Replay
from qiskit_torch_bridge.backends.ibm.errors import LedgerError
from qiskit_torch_bridge.backends.ibm.recording import write_recording
from qiskit_torch_bridge.backends.ibm.service import CloudDevice
from qiskit_torch_bridge.backends.results import Arrays, WrongResult, arrays_from, arrays_of, bytes_of

CHECKOUT = Path(__file__).parents[2]
X = torch.tensor([[0.3], [1.9]], dtype=torch.float64)
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], None]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one changed, some lost, some twice, or cut short."""
    place, length = rng.randrange(len(data)), rng.randrange(1, 50)
    kind = rng.randrange(10)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[place + length :]
    if kind == 2:
        return data[:place] + data[place : place + length] + data[place:]
    byte = rng.choice([data[place] ^ 1 << rng.randrange(8), rng.randrange(256), ord(rng.choice('0123456789"[],:ZX'))])
    return data[:place] + bytes([byte]) + data[place + 1 :]


def same(found: Arrays, right: Arrays) -> bool:
    return [len(pub) for pub in found] == [len(pub) for pub in right] and all(
        np.array_equal(one, other) for pubs in zip(found, right, strict=True) for one, other in zip(*pubs, strict=True)
    )


# The service's answers ------------------------------------------------------------------------------------------------


class Answered:
    """A job whose result arrives as it is told: what the genuine client knows of it is genuine."""

    def __init__(self, job: Any, asked: Any) -> None:
        self.asked, self.inputs, self.tags = asked, job.inputs, job.tags
        self.body: str = job._api_client.job_results(job_id=job.job_id())
        self.right = self.read(self.body)

    def result(self, *, decoder: Any) -> str:
        return self._arrives

    def read(self, body: str) -> Arrays:
        self._arrives = body
        device = object.__new__(CloudDevice)
        device.service, device._jobs = SimpleNamespace(), {"job": self}
        return arrays_from(device.result("job"), self.asked)


@pytest.fixture(scope="module", params=OPTIONS)
def answered(request, server, tmp_path_factory):
    """A job of each kind, done and fetched."""
    with ibm(tmp_path_factory.mktemp("answered") / "ledger.sqlite", **OPTIONS[request.param]) as backend:
        with torch.no_grad():
            layer_on(backend)(FEATURES)
        (entry,) = backend.ledger.entries()
        return Answered(backend.connection._job(entry.job_id), backend.ledger.asked_of_jobs()[entry.key])


def refusals(answered: Answered, bodies: list[str]) -> int:
    """How many bodies are refused; all others bring the right numbers."""
    refused = 0
    for body in bodies:
        try:
            found = answered.read(body)
        except WrongResult:
            refused += 1
        else:
            assert same(found, answered.right), body
    return refused


def test_any_byte_of_an_answer(answered):
    rng = random.Random(1)
    body = answered.body.encode()
    assert refusals(answered, [damaged(body, rng).decode(errors="replace") for _ in range(300)]) > 200


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """All places of nested data: (container, key)."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = []
    for key, value in items:
        found += [(tree, key), *nodes(value)]
    return found


def resized(tensor: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same array, whole in itself, with one axis longer or shorter, or of other values."""
    array = CompressedTensorModel(**tensor).to_numpy()
    axis = rng.randrange(array.ndim)
    changes = [array.take(range(array.shape[axis] - 1), axis), np.concatenate([array, array.take([0], axis)], axis)]
    changes += [array[None], array.astype(np.float64) + 0.5]
    changed: dict[str, Any] = CompressedTensorModel.from_numpy(np.ascontiguousarray(rng.choice(changes))).model_dump()
    return changed


def with_a_field_changed(decoded: dict[str, Any], rng: random.Random) -> str:
    """The body with a field removed, twice, under another name, of another value, or resized."""
    decoded = copy.deepcopy(decoded)
    # Timestamps and options are many, and change nothing.
    places = [p for p in nodes({key: decoded[key] for key in ("data", "passthrough_data")}) if p[1] != "options"]
    container, key = rng.choice(places)
    tensors = [place for place in places if isinstance(place[0][place[1]], dict) and "dtype" in place[0][place[1]]]
    kind = rng.randrange(6)
    if kind == 0 and isinstance(container, list):
        container.insert(key, container[key])
    elif kind in (0, 1):
        container.pop(key)
    elif kind == 2:
        container[key] = rng.choice([None, 0, 1, 2, 64, 3.5, "Z", "ZIIII", [], {}, [1], True, False])
    elif kind == 3 and isinstance(container, dict):
        container[f"{key}{rng.choice('ab')}"] = container.pop(key)
    else:
        container, key = rng.choice(tensors)
        container[key] = resized(container[key], rng)
    return json.dumps({**decoded})


def test_any_field_of_an_answer(answered):
    rng = random.Random(2)
    decoded = json.loads(answered.body)
    assert refusals(answered, [with_a_field_changed(decoded, rng) for _ in range(200)]) > 50


# The ledger's copies --------------------------------------------------------------------------------------------------


def test_any_byte_of_a_kept_result(rng):
    right = [[rng.integers(0, 4, (5, 30, 1), dtype=np.uint8)], [rng.normal(size=(2, 5)), rng.normal(size=(2, 5)) ** 2]]
    data, draw, refused = bytes_of(right), random.Random(3), 0
    for _ in range(400):
        try:
            found = arrays_of(damaged(data, draw))
        except ValueError:
            refused += 1
        else:
            assert same(found, right)
    assert refused > 300


def test_a_damaged_row_is_named_and_can_be_given_up(tmp_path):
    """A rehearsal's job is nowhere else: it is simulated once more, after its user has said so."""
    path, draw = tmp_path / "jobs.sqlite", random.Random(4)
    backend = IBMBackend(noiseless(), ledger=path)
    layer = textbook_layer(backend, shots=60)
    right = layer(X).tolist()
    with sqlite3.connect(path) as db:
        (blob,) = db.execute("SELECT result FROM jobs").fetchone()
    refused: list[str] = []
    for _ in range(20):
        with db:
            db.execute("UPDATE jobs SET result = ? WHERE number = 1", (damaged(blob, draw),))
        try:
            assert textbook_layer(backend, shots=60)(X).tolist() == right
        except LedgerError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all("result of job 1 in" in said and str(path) in said for said in refused)
    with db:
        db.execute("UPDATE jobs SET result = ? WHERE number = 1", (blob[:-9],))
    db.close()
    with pytest.raises(HardwareError, match="damaged"):
        textbook_layer(backend, shots=60)(X)
    with pytest.raises(LedgerError, match="damaged"):
        write_recording(backend.ledger, tmp_path / "run.npz")
    assert not (tmp_path / "run.npz").exists()
    backend.forget(1)
    assert textbook_layer(backend, shots=60)(X).tolist() == right
    assert [entry.state for entry in backend.ledger.entries()] == ["failed", "done"]


# Recordings -----------------------------------------------------------------------------------------------------------


def replayed(path: Path) -> list[list[float]]:
    numbers: list[list[float]] = textbook_layer(Replay(path), shots=60)(X).tolist()
    return numbers


@pytest.fixture(scope="module", params=["sampler", "estimator"])
def recorded(request, tmp_path_factory):
    """A recording, and what it replays."""
    path = tmp_path_factory.mktemp("recorded") / "run.npz"
    backend = IBMBackend(noiseless(), primitive=request.param)
    right = textbook_layer(backend, shots=60)(X).tolist()
    write_recording(backend.ledger, path)
    assert replayed(path) == right
    return path, right


def test_any_byte_of_a_recording(recorded, tmp_path):
    path, right = recorded
    whole, draw, refused = path.read_bytes(), random.Random(5), []
    for number in range(200):
        other = tmp_path / f"{number}.npz"
        other.write_bytes(damaged(whole, draw))
        try:
            assert replayed(other) == right
        except ValueError as error:
            refused.append((f"{other} is no recording, or a damaged one (", str(error)))
    assert len(refused) > 150
    assert all(said.startswith(begins) and "qtb record LEDGER FILE" in said for begins, said in refused)


def rewritten(path: Path, target: Path, change: Change) -> Path:
    """A recording as earlier versions have written them, without a checksum, with something changed."""
    with np.load(path) as archive:
        arrays = dict(archive)
    manifest = json.loads(arrays.pop("manifest").tobytes())
    del manifest["checksum"]
    change(manifest, arrays)
    content = np.frombuffer(json.dumps(manifest).encode(), dtype=np.uint8)
    np.savez_compressed(target, manifest=content, **arrays)
    return target


def on(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A change of all arrays whose name ends so."""

    def changed(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays |= {key: change(array) for key, array in arrays.items() if key.endswith(name) and "angles" not in key}
        arrays |= {key: change(array) for key, array in arrays.items() if key.endswith(name) and "angles" in name}

    return changed


CHANGES: dict[str, Change] = {
    "shots cut short": on("/0", lambda array: array[..., :30, :] if array.dtype == np.uint8 else array[:1]),
    "rows cut short": on("/0", lambda array: array[:-1] if array.dtype == np.uint8 else array[:, :-1]),
    "no bytes": on("/0", lambda array: array[..., :0]),
    "no numbers": on("/0", lambda array: array * np.nan),
    "another type": on("/0", lambda array: array.astype(complex)),
    "angles cut short": on("angles", lambda array: array[:-1]),
    "angles that are none": on("angles", lambda array: array * np.nan),
    "angles of another type": on("angles", lambda array: array.astype(np.float32)),
    "an array fewer": lambda manifest, arrays: arrays.__delitem__("0/0/0/0"),
    "an array more": lambda manifest, arrays: arrays.update({"0/7/0/0": np.zeros(3)}),
    "no evaluations": lambda manifest, arrays: manifest.pop("evaluations"),
    "no passport": lambda manifest, arrays: manifest["evaluations"][0].pop("passport"),
    "no shots": lambda manifest, arrays: manifest["evaluations"][0].update(shots=None),
    "negative shots": lambda manifest, arrays: manifest["evaluations"][0].update(shots=-60),
    "other outputs": lambda manifest, arrays: manifest["evaluations"][0].update(outputs=[[0], [1]]),
    "a list for it all": lambda manifest, arrays: manifest.update(evaluations=3),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_recording_without_a_checksum_that_was_changed(recorded, tmp_path, what):
    """Whole as an archive, so that only what it says can tell."""
    path = rewritten(recorded[0], tmp_path / "changed.npz", CHANGES[what])
    with pytest.raises(ValueError, match=rf"{path}.*qtb record LEDGER FILE"):
        replayed(path)


def test_recordings_of_earlier_versions_are_replayed(recorded, tmp_path):
    path, right = recorded
    assert replayed(rewritten(path, tmp_path / "old.npz", lambda manifest, arrays: None)) == right
    assert Replay(CHECKOUT / "experiments" / "recordings" / "fake-manila.npz").passports


def test_a_checksum_sees_what_shapes_do_not(recorded, tmp_path):
    with np.load(recorded[0]) as archive:
        arrays = dict(archive)
    arrays["0/0/0/0"] = arrays["0/0/0/0"][..., ::-1, :]
    np.savez_compressed(tmp_path / "turned.npz", **arrays)
    with pytest.raises(ValueError, match="its checksum is another"):
        Replay(tmp_path / "turned.npz")


def test_sizes_are_checked_before_they_are_allocated(recorded, tmp_path):
    """A header that promises more than there is."""
    with zipfile.ZipFile(recorded[0]) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    shape = (2, 10**12, 60, 1)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    members["0/0/0/0.npy"] = header.getvalue() + bytes(120)
    with zipfile.ZipFile(tmp_path / "forged.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"has 120 bytes, but is said to have shape \(2, 1000000000000, 60, 1\)"):
        Replay(tmp_path / "forged.npz")
