"""The benchmark's wide circuits: their reference, output by output, and systems that give values only."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.benchmark import gate_lists, ours
from experiments.benchmark.cases import SYSTEMS
from experiments.benchmark.exact_answers import Answer, compare, exact_answer


@pytest.mark.parametrize("input_gradients", [True, False])
def test_answer_of_parts_is_that_of_the_whole(input_gradients):
    problem = gate_lists.brickwork(num_qubits=7, layers=1, batch=2, seed=1)
    problem = replace(problem, measured=(6, 0, 3), wants_input_gradients=input_gradients)
    problem = replace(problem, upstream=problem.upstream[:, :3])
    whole, parts = (exact_answer(problem, most_qubits=most) for most in (7, 4))
    assert parts.parts().keys() == whole.parts().keys()
    for name, part in parts.parts().items():
        np.testing.assert_allclose(part, whole.parts()[name], atol=1e-12)


def test_hundred_qubits():
    """Layer and reference; and what is known, where all weights are 0: CNOTs of states of RY."""
    problem = gate_lists.brickwork(num_qubits=100, layers=1, batch=2, seed=1)
    answer = Answer.of(*ours.build(problem, None, 0).take())
    assert compare(answer, exact_answer(problem), problem, shots=None, tolerance=1e-12)[1] == ""
    cosines = np.cos(problem.inputs)
    values = exact_answer(replace(problem, weights=np.zeros(200))).values
    np.testing.assert_allclose(values[:, 0], cosines[:, 0], atol=1e-12)
    np.testing.assert_allclose(values[:, 1], cosines[:, :2].prod(axis=1), atol=1e-12)
    np.testing.assert_allclose(values[:, 50], cosines[:, [48, 49, 50]].prod(axis=1), atol=1e-12)


def test_where_an_output_needs_all_qubits_nothing_is_taken_apart():
    problem = gate_lists.entangling(num_qubits=3, layers=2, batch=2, seed=1)
    whole, same = exact_answer(problem), exact_answer(problem, most_qubits=1)
    assert np.array_equal(whole.weight_gradients, same.weight_gradients)


@pytest.mark.parametrize("build", [ours.build_values, ours.build_values_on_mps])
def test_values_alone(build):
    problem = gate_lists.brickwork(num_qubits=3, layers=2, batch=2, seed=1)
    answer, expected = Answer.of(*build(problem, None, 0).take()), exact_answer(problem)
    assert compare(answer, expected, problem, shots=None, tolerance=1e-9, values_only=True)[1] == ""
    assert "gives no weight gradients" in compare(answer, expected, problem, shots=None, tolerance=1e-9)[1]
    wrong = answer._replace(values=answer.values + 1e-6)
    assert "values are off" in compare(wrong, expected, problem, shots=None, tolerance=1e-9, values_only=True)[1]


def test_system_without_gradients_is_timed_and_is_no_peer():
    alone = {name: system for name, system in SYSTEMS.items() if system.values_only}
    assert alone.keys() == {"ours-values", "aer-mps-values", "pennylane-tensor-values"}
    assert not any(system.layer for system in alone.values() if not system.ours)
