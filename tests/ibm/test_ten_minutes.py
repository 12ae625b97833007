"""What ten minutes of a device buy, one by one and side by side: the table of the guide, from the quotes."""

import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")

from qiskit_torch_bridge import IBMBackend, QuantumLayer, Quote
from qiskit_torch_bridge.backends import ibm
from qiskit_torch_bridge.circuits import dressed

SECONDS = 600
SHOTS = (100, 1000)


def quotes_on(backend: IBMBackend, shots: int) -> dict[str, Quote]:
    """The quote of a training step of each model."""
    weight = ParameterVector("w", 1)
    qubit = QuantumCircuit(1)
    qubit.h(0)
    qubit.ry(weight[0], 0)
    options = {"backend": backend, "shots": shots, "seed": 1}
    textbook = QuantumLayer(qubit, inputs=weight, observables=["Z"], **options)
    circuit, inputs, weights = dressed(4, 2)
    net = QuantumLayer(circuit, inputs=inputs, weights=weights, **options)
    halves = {"first": list(weights)[:4], "second": list(weights)[4:]}
    frozen = QuantumLayer(circuit, inputs=inputs, weights=halves, **options)
    frozen.weights["first"].requires_grad_(False)
    spsa = QuantumLayer(circuit, inputs=inputs, weights=weights, gradient="spsa", **options)
    return {
        "textbook's qubit, batch 1": textbook.quote(1),
        "the same, batch 50": textbook.quote(50),
        "dressed: 4 qubits, 8 weights, batch 4, behind trainable layers": net.quote(4),
        "the same on plain data (or a frozen network before it)": net.quote(4, inputs_require_grad=False),
        "the same, first half of the weights frozen": frozen.quote(4, inputs_require_grad=False),
        'behind trainable layers, ``gradient="spsa"``': spsa.quote(4),
    }


def all_quotes() -> dict[tuple[int, bool], dict[str, Quote]]:
    """Those of each number of shots, one by one and side by side."""
    backends = {packed: IBMBackend("fake_fez", packing="auto" if packed else None) for packed in (False, True)}
    return {(shots, packed): quotes_on(backends[packed], shots) for shots in SHOTS for packed in (False, True)}


def table(quotes: dict[tuple[int, bool], dict[str, Quote]]) -> list[str]:
    """The lines of the table."""

    def cell(quote: Quote) -> str:
        seconds = quote.qpu_seconds
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s: {int(SECONDS / seconds)}"

    lines = ["| a training step | circuits | 100 shots | packed | 1000 shots | packed |", "|---|---|---|---|---|---|"]
    for name, quote in quotes[SHOTS[0], False].items():
        cells = [cell(of_models[name]) for of_models in quotes.values()]
        lines.append(f"| {name} | {quote.circuits} | {' | '.join(cells)} |")
    return lines


@pytest.mark.slow
def test_the_guide_has_what_quotes_say_and_packing_reaches_its_goals():
    quotes = all_quotes()
    packed = quotes[1000, True]
    assert packed["dressed: 4 qubits, 8 weights, batch 4, behind trainable layers"].qpu_seconds <= 4
    assert packed["the same, batch 50"].qpu_seconds <= 4
    for line in table(quotes):
        assert line in ibm.__doc__.splitlines()


if __name__ == "__main__":
    print("\n".join(table(all_quotes())))
