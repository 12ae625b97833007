"""Expectation values of wide circuits by Pauli propagation, with adjoint differentiation and bounds of the bias."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import number_from
from ..program.compiled import Program
from ..program.light_cones import CircuitGates
from ..program.readout import Expectation
from .aer import noisy_simulator
from .base import Estimate, ProgramCache
from .noise_channels import noisy_circuits
from .simulated import ignored_noise, is_from, noise_model_of
from .simulating import SimulatingBackend, contiguous
from .transpiling import TranspilerOptions

if TYPE_CHECKING:
    from ..simulator.propagation_engine import PropagationSimulator, Truncated

__all__ = ["PauliBackend"]

_NOT_SMALL = 0.01  # of an output's size: bounds beyond it are warned of


class PauliBackend(SimulatingBackend):
    r"""Expectation values of circuits of a hundred qubits and more, by Pauli propagation; adjoint gradients.

    An observable, a sum of Pauli strings, is taken back through the circuit in the Heisenberg picture. Clifford gates turn a
    string into another one, and cost nothing; other rotations turn it into two, so there are more and more of them. Those
    with small coefficients are dropped. What is left is read in :math:`|0...0\rangle`, where strings of Z's are 1 and all
    others 0. It is the backend for circuits whose light cones have too many qubits for their states: how wide a circuit is
    does not matter, how many strings there are does, which is few where few gates are not Clifford gates, angles are small,
    or there is noise. (M. S. Rudolph et al., "Pauli Propagation", arXiv:2505.21606.)

    **Bias.** A Pauli string's expectation value is at most 1, so a value is no further from exact than the sum of what its
    dropped strings had as coefficients, without signs. ``layer.last_run.truncation_bounds`` has that bound of each value,
    with a warning (one for a circuit) where it is more than a hundredth of the output's size, the sum of the observable's
    coefficients without signs. It is often much larger than the bias, because what is dropped has signs of both kinds; where
    it says little, compare with a ``tolerance`` ten times smaller. It is 0, and values are exact, where nothing is dropped.

    **Gradients** are those of the values as they are computed: what is dropped counts as dropped at all angles nearby.
    Strings are therefore also kept where their coefficients are small and have large derivatives, as they have at angles of
    0. ``gradient="parameter_shift"`` works too; each of its values then has the bound above.

    **What it costs.** An example: Z on each of 127 qubits, five layers of RY and RZ with angles within 0.6, and CZ on the
    couplings of a heavy-hex device; one row, values and all gradients, two cores. At a tolerance of 1e-3 it takes 0.05 s,
    and values are off by 0.001 (median; 0.005 at most), where the median of the bounds is 0.5; at 1e-4 it takes 0.3 s, and
    they are off by 0.0001 (0.0006), with bounds of 0.2. Entries of the gradient of their sum, 1.3 at most, are off by up to
    0.04 and 0.006. Eight layers with angles of all sizes fill ``max_terms``, take a minute, and their bounds say nothing.

    Values are without shots. A batch runs in as many threads as PyTorch would use (``torch.get_num_threads()``), an output
    of a row in each; results do not depend on them. The code is compiled the first time that a machine uses it, and kept on
    disk.

    Args:
        max_terms: The most Pauli strings of an output; beyond, the smallest are dropped. A million strings of 100 qubits
            take some 0.3 GiB in each thread, and gradients several times that.
        tolerance: Strings whose coefficients are smaller, and change by less than ten times as much for a radian of any
            angle, are dropped. 0 drops none.
        noise: Aer's ``NoiseModel`` with errors that are mixtures of Pauli strings (depolarising, bit flips, phase flips) or
            gates, and readout errors; they are applied where Aer would apply them. Others are refused by name. None: no
            noise.

    Raises:
        TypeError, ValueError: If an argument is something else.
    """

    name = "pauli"

    def __init__(self, *, max_terms: int = 100_000, tolerance: float = 1e-4, noise: Any = None) -> None:
        self.max_terms: int = number_from("max_terms", max_terms, least=1, whole=True)
        self.tolerance = float(number_from("tolerance", tolerance))
        # The noise as it is now: what the user adds to it later has no influence.
        self.simulator = (
            None if noise is None else noisy_simulator(deepcopy(noise) if is_from("qiskit_aer", noise) else noise)
        )
        self._cache, self._warned = ProgramCache(), ProgramCache()

    def resolve_shots(self, shots: int | None) -> int | None:
        if super().resolve_shots(shots) is not None:
            raise ValueError(
                f"shots: got {shots} for backend 'pauli', which has expectation values and no outcomes to draw; use "
                "shots=None, backend='statevector' where light cones have few qubits, or "
                "backend=AerSimulator(method='matrix_product_state')."
            )
        return None

    def _new_simulator(self, program: Program) -> PropagationSimulator:
        if not isinstance(program.readout, Expectation):
            raise ValueError(
                "probabilities: backend 'pauli' has expectation values only; give observables (the probability of a qubit's "
                "0 is (1 + Z) / 2), or use backend='statevector' or AerSimulator(method='matrix_product_state')."
            )
        # On first use: they load the compiler.
        from ..simulator.propagation_engine import PropagationSimulator
        from ..simulator.propagation_plan import propagations_of, propagations_with_noise

        if self.simulator is None:
            propagations = propagations_of(CircuitGates(program), program.readout)
        else:
            self._warn_once("ignored noise", ignored_noise(noise_model_of(self.simulator)))
            circuits = noisy_circuits(program, self.simulator, TranspilerOptions(default_level=0))
            propagations = propagations_with_noise(circuits, program.readout)
        constants = program.readout.constants
        return PropagationSimulator(propagations, constants, tolerance=self.tolerance, max_terms=self.max_terms)

    def _evaluate(
        self,
        program: Program,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        *,
        keep: bool = False,
    ) -> Estimate:
        truncated: Truncated = self._simulator(program).values(contiguous(angles), keep=keep)
        self._warn_of_bias(program, truncated.bounds)
        return Estimate(
            truncated.values,
            np.zeros(truncated.values.shape),
            len(angles) * len(program.readout.groups),
            0,
            state=truncated.jacobians,
            truncation_bounds=truncated.bounds,
        )

    def _warn_of_bias(self, program: Program, bounds: np.ndarray) -> None:
        sizes = self._simulator(program).sizes
        if program in self._warned or (bounds <= _NOT_SMALL * sizes).all():
            return
        self._warned[program] = True
        row, output = np.unravel_index((bounds / np.where(sizes > 0, sizes, 1.0)).argmax(), bounds.shape)
        warnings.warn(
            f"Pauli propagation has dropped so much of output {output} (row {row}) that its value may be off by up to "
            f"{bounds[row, output]:.2g}, where it is at most {sizes[output]:.2g}; lower tolerance ({self.tolerance:g}) or "
            f"raise max_terms ({self.max_terms}) of PauliBackend. This bound, which layer.last_run.truncation_bounds has "
            "for each value, is rigorous, and often much larger than the bias: compare with a smaller tolerance.",
            stacklevel=2,
        )

    def __repr__(self) -> str:
        noise = "" if self.simulator is None else ", with noise"
        return f"PauliBackend(max_terms={self.max_terms}, tolerance={self.tolerance:g}{noise})"
