"""Samplers and Estimators that do not return what they were asked for: an error that says so, never a number."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import (
    BaseEstimatorV2,
    BaseSamplerV2,
    BitArray,
    DataBin,
    PrimitiveResult,
    PubResult,
    SamplerPubResult,
    StatevectorEstimator,
    StatevectorSampler,
)

from qiskit_torch_bridge import QuantumLayer

SHOTS = 64


class Finished:
    """A job that has its result."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self) -> Any:
        return self._result


class WrongSampler(BaseSamplerV2):
    """A Sampler whose result is changed before it is handed over."""

    def __init__(self, change: Callable[[list[Any]], Any]) -> None:
        self.change = change

    def run(self, pubs: Any, *, shots: int | None = None) -> Any:
        return Finished(self.change(list(StatevectorSampler(seed=0).run(pubs, shots=shots).result())))


class WrongEstimator(BaseEstimatorV2):
    """The same of an Estimator."""

    def __init__(self, change: Callable[[list[Any]], Any]) -> None:
        self.change = change

    def run(self, pubs: Any, *, precision: float | None = None) -> Any:
        return Finished(self.change(list(StatevectorEstimator(seed=0).run(pubs).result())))


def layer_on(primitive: Any, *, constant: bool = False) -> QuantumLayer:
    """<ZII> is -1 at x = pi, where the other two qubits are in no definite state."""
    x = Parameter("x")
    circuit = QuantumCircuit(3)
    circuit.h([0, 1])
    circuit.rx(np.pi if constant else x, 2)
    inputs = [] if constant else [x]
    observables = ["ZII", "IXX"] if isinstance(primitive, BaseEstimatorV2) else ["ZII", "IXX", "XXI"]  # 3 bits, and 2
    return QuantumLayer(circuit, inputs=inputs, observables=observables, backend=primitive, shots=SHOTS, seed=1)


def values_of(primitive: Any, *, constant: bool = False) -> torch.Tensor:
    rows = torch.full((4, 0 if constant else 1), np.pi, dtype=torch.float64)
    return layer_on(primitive, constant=constant)(rows)


def bits(change: Callable[[BitArray], Any], name: str = "outcome") -> Callable[[list[Any]], Any]:
    """A change of the bits of the first PUB."""

    def damaged(pubs: list[Any]) -> Any:
        found = change(pubs[0].data["outcome"])
        return PrimitiveResult([SamplerPubResult(DataBin(**{name: found}, shape=found.shape[:1])), *pubs[1:]])

    return damaged


def numbers(**changes: Callable[[np.ndarray], Any]) -> Callable[[list[Any]], Any]:
    """A change of the values, or of the standard errors, of the first PUB."""

    def damaged(pubs: list[Any]) -> Any:
        data = {name: changes.get(name, np.copy)(array) for name, array in pubs[0].data.items()}
        return PrimitiveResult([PubResult(DataBin(**data)), *pubs[1:]])

    return damaged


def with_entry(value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def changed(array: np.ndarray) -> np.ndarray:
        array = np.array(array)
        array.flat[-1] = value
        return array

    return changed


SAMPLERS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "one bit fewer": (bits(lambda b: b.slice_bits([0, 1])), r"PUB 0: got 2 bit\(s\) a shot, expected 3"),
    "one bit more": (bits(lambda b: BitArray(b.array | 8, 4)), r"PUB 0: got 4 bit\(s\) a shot, expected 3"),
    "half the shots": (bits(lambda b: b.slice_shots(range(32))), r"got shape \(4, 32, 1\).*expected \(4, 64, 1\)"),
    "twice the shots": (bits(lambda b: BitArray.concatenate_shots([b, b])), r"got shape \(4, 128, 1\).*\(4, 64, 1\)"),
    "half the rows": (bits(lambda b: b[:2]), r"got shape \(2, 64, 1\).*expected \(4, 64, 1\)"),
    "rows in two axes": (bits(lambda b: b.reshape(2, 2)), r"got shape \(2, 2, 64, 1\).*expected \(4, 64, 1\)"),
    "another register": (bits(lambda b: b, "meas"), r"got \['meas'\], .* measured bits of the register 'outcome'"),
    "counts for bits": (bits(lambda b: np.zeros((*b.shape, 64, 1), np.uint8)), "expected the measured bits"),
    "a PUB fewer": (lambda pubs: PrimitiveResult(pubs[:-1]), r"got 1 PUB\(s\), expected 2"),
    "a PUB more": (lambda pubs: PrimitiveResult([*pubs, pubs[0]]), r"got 3 PUB\(s\), expected 2"),
    "PUBs in another order": (lambda pubs: PrimitiveResult(pubs[::-1]), r"PUB 0: got 1 bit\(s\) a shot, expected 3"),
    "an Estimator's values": (lambda pubs: [PubResult(DataBin(evs=np.ones(4), stds=np.ones(4)))] * 2, "got 2 array"),
    "nothing": (lambda pubs: None, "got NoneType, expected the results of PUBs"),
}

ESTIMATORS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "half the rows": (numbers(evs=lambda a: a[:, :2]), r"got shape \(2, 2\) \(values\), expected \(2, 4\)"),
    "an observable fewer": (numbers(evs=lambda a: a[:1]), r"got shape \(1, 4\) \(values\), expected \(2, 4\)"),
    "one for all": (numbers(evs=lambda a: a[0, 0]), r"got shape \(\) \(values\), expected \(2, 4\)"),
    "axes swapped": (numbers(evs=np.transpose), r"got shape \(4, 2\) \(values\), expected \(2, 4\)"),
    "NaN": (numbers(evs=with_entry(np.nan)), r"got nan at \(1, 3\), expected finite values"),
    "infinite": (numbers(evs=with_entry(-np.inf)), r"got -inf at \(1, 3\), expected finite values"),
    "complex": (numbers(evs=lambda a: a + 1j), "values of type complex128, expected real numbers"),
    "words": (numbers(evs=lambda a: np.full(a.shape, "x")), "values of type <U1, expected real numbers"),
    "a negative error": (numbers(stds=with_entry(-0.1)), r"got -0\.1 at \(1, 3\), expected standard errors"),
    "no error": (numbers(stds=with_entry(np.nan)), r"got nan at \(1, 3\), expected standard errors"),
    "an infinite error": (numbers(stds=with_entry(np.inf)), r"got inf at \(1, 3\), expected standard errors"),
    "errors of other shape": (numbers(stds=lambda a: a[:1]), r"got shape \(1, 4\) \(standard errors\).* \(2, 4\)"),
    "no errors": (lambda pubs: [PubResult(DataBin(evs=pubs[0].data.evs))], r"got \['evs'\], expected"),
    "no PUB": (lambda pubs: PrimitiveResult([]), r"got 0 PUB\(s\), expected 1"),
    "a PUB more": (lambda pubs: PrimitiveResult(pubs * 2), r"got 2 PUB\(s\), expected 1"),
    "bits": (lambda pubs: [SamplerPubResult(DataBin(outcome=BitArray(np.zeros((4, 1), np.uint8), 3)))], "got 1 array"),
}


CASES = [(WrongSampler, what, *case) for what, case in SAMPLERS.items()]
CASES += [(WrongEstimator, what, *case) for what, case in ESTIMATORS.items()]


@pytest.mark.parametrize(("kind", "what", "change", "message"), CASES, ids=[f"{c[0].__name__}-{c[1]}" for c in CASES])
def test_a_primitive_that_returns_something_else(kind, what, change, message):
    with pytest.raises(RuntimeError, match=rf"{kind.__name__} did not return what it was asked for: .*{message}"):
        values_of(kind(change))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("primitive", [WrongSampler, WrongEstimator])
def test_what_is_right_is_taken(primitive, constant):
    """Without a parameter every row is a PUB of its own."""
    values = values_of(primitive(PrimitiveResult), constant=constant)
    assert values.shape == (4, 3 if primitive is WrongSampler else 2)
    expected = -torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(values[:, 0].detach(), expected, rtol=0, atol=0 if primitive is WrongSampler else 0.6)


@pytest.mark.parametrize("primitive", [WrongSampler, WrongEstimator])
def test_rows_of_a_circuit_without_parameters_are_counted_too(primitive):
    with pytest.raises(RuntimeError, match=r"got \d PUB\(s\), expected \d"):
        values_of(primitive(lambda pubs: PrimitiveResult(pubs[:-1])), constant=True)


def test_only_a_sampler_that_twirls_may_round_shots_up():
    """It spreads them over randomisations of equal size; fewer than were asked for are none the less refused."""
    pytest.importorskip("qiskit_ibm_runtime")
    from qiskit_ibm_runtime.executor_sampler import Sampler
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    options = {"twirling": {"enable_measure": True, "num_randomizations": 7}}
    layer = layer_on(Sampler(FakeManilaV2(), options=options))
    layer(torch.full((1, 1), np.pi, dtype=torch.float64))
    assert layer.last_run.shots == 2 * 70  # two circuits, 7 times 10 shots

    rounding, halving = (WrongSampler(SAMPLERS[f"{what} the shots"][0]) for what in ("twice", "half"))
    for sampler in (rounding, halving):
        sampler.options = Sampler(FakeManilaV2(), options=options).options
    with pytest.raises(RuntimeError, match=r"got shape \(4, 32, 1\)"):
        values_of(halving)
    assert values_of(rounding)[0, 0] == -1
