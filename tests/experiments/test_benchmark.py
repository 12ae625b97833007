"""The benchmark: that it asks all systems the same, reports no time of a wrong answer, and survives every peer."""

import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import yaml
from qiskit.circuit.library import CXGate, CZGate, HGate, RXGate, RYGate, RZGate
from qiskit.quantum_info import DensityMatrix, Pauli, Statevector
from qiskit_aer.noise import depolarizing_error

from experiments.__main__ import main
from experiments.benchmark import gate_lists, ours, peers_torch
from experiments.benchmark.benchmark_settings import BenchmarkSettings
from experiments.benchmark.campaign import run_benchmark
from experiments.benchmark.cases import CASES, PARTS, SYSTEMS, Case, System, Target, plan
from experiments.benchmark.exact_answers import Answer, compare, exact_answer
from experiments.benchmark.gate_lists import Depolarising, Problem, played, quantum_circuit, z_labels
from experiments.benchmark.measuring import Outcome, fewer_repetitions
from experiments.benchmark.report import by_case, comparisons, growth, markdown, timing_rows
from experiments.benchmark.worker import Process, WorkerError
from experiments.common.runs import RunFolder
from qiskit_torch_bridge import StatevectorBackend


def noisy(make: partial[Problem]) -> Callable[..., Problem]:
    """The same with depolarising noise, much of it."""
    return lambda seed: replace(make(seed=seed), noise=Depolarising(0.08, 0.2))


NOISELESS = {
    "textbook": partial(gate_lists.textbook, batch=3),
    "dressed": partial(gate_lists.dressed, depth=2, batch=3),
    "layerwise": partial(gate_lists.layerwise, num_qubits=4, layers=3, batch=2),
    "entangling": partial(gate_lists.entangling, num_qubits=3, layers=2, batch=2),
    "brickwork": partial(gate_lists.brickwork, num_qubits=3, layers=2, batch=2),
    "partly trained": partial(gate_lists.layerwise, num_qubits=3, layers=2, batch=2, outputs=2, trained=1),
}
PROBLEMS = {
    **NOISELESS,
    "noisy dressed": noisy(partial(gate_lists.dressed, depth=1, batch=2)),
    "noisy and partly trained": noisy(NOISELESS["partly trained"]),
}
QISKIT_GATES = {"h": HGate, "cx": CXGate, "cz": CZGate, "rx": RXGate, "ry": RYGate, "rz": RZGate}

ADAPTERS = """
import os, sys, time
from dataclasses import replace
from experiments.benchmark.exact_answers import exact_answer
from experiments.benchmark.gate_lists import Step

def right(problem, shots, seed):
    answer = exact_answer(problem)
    return Step(lambda: (answer.values, answer.input_gradients, answer.weight_gradients))

def wrong(problem, shots, seed):
    answer = exact_answer(problem)
    return Step(lambda: (answer.values, 2 * answer.input_gradients, answer.weight_gradients))

def without_noise(problem, shots, seed):
    return right(replace(problem, noise=None), shots, seed)

def chatty(problem, shots, seed):
    print("Welcome to this library!")
    os.system("echo and to its subprocess")
    return right(problem, shots, seed)

def absent(problem, shots, seed):
    import no_such_library

def refusing(problem, shots, seed):
    raise NotImplementedError("not for batches")

def crashing(problem, shots, seed):
    print("Segmentation fault, say", file=sys.stderr, flush=True)
    os._exit(3)

def crashing_later(problem, shots, seed):
    step, calls = right(problem, shots, seed), []
    def take():
        calls.append(None)
        if len(calls) > 1:
            os._exit(4)
        return step.take()
    return Step(take)

def hanging(problem, shots, seed):
    time.sleep(600)
"""


@pytest.fixture
def _adapters(tmp_path, monkeypatch):
    """A module of adapters that the workers can import, as :func:`system` names them."""
    folder = tmp_path / "importable"
    folder.mkdir()
    (folder / "benchmark_adapters.py").write_text(ADAPTERS)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def system(behaviour: str, *, is_ours: bool = False) -> System:
    return System(f"the {behaviour} one", f"benchmark_adapters:{behaviour}", ours=is_ours)


def with_ours(*behaviours: str) -> dict[str, System]:
    """Stand-ins under the names that the cases know."""
    peers = [name for name, one in SYSTEMS.items() if not one.ours and not one.values_only]
    stand_ins = dict(zip(peers, map(system, behaviours), strict=False))
    return {"ours": system("right", is_ours=True), **stand_ins}


def judged(parts: Sequence, problem: Problem, *, shots: int | None = None, tolerance: float = 0) -> tuple[float, str]:
    """What the comparison with the reference comes to."""
    return compare(Answer.of(*parts), exact_answer(problem), problem, shots=shots, tolerance=tolerance)


def values_by_qiskit(problem: Problem, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if problem.noise is not None:
        return noisy_values_by_qiskit(problem, inputs, weights)
    circuit, x, w = quantum_circuit(problem)
    rows = []
    for row in inputs:
        state = Statevector(circuit.assign_parameters({**dict(zip(x, row)), **dict(zip(w, weights))}))  # noqa: B905
        rows.append([state.expectation_value(Pauli(label)).real for label in z_labels(problem)])
    return np.array(rows)


def noisy_values_by_qiskit(problem: Problem, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gate by gate, each followed by Aer's channel."""
    assert problem.noise is not None
    channels = {
        1: depolarizing_error(problem.noise.one_qubit, 1).to_quantumchannel(),
        2: depolarizing_error(problem.noise.two_qubit, 2).to_quantumchannel(),
    }
    rows = []
    for row in inputs:
        state = DensityMatrix.from_label("0" * problem.num_qubits)
        for name, qubits, angle in played(problem, row, weights):
            state = state.evolve(QISKIT_GATES[name](*angle), list(qubits))
            state = state.evolve(channels[len(qubits)], list(qubits))
        rows.append([state.expectation_value(Pauli(label)).real for label in z_labels(problem)])
    return np.array(rows)


@pytest.mark.parametrize("name", PROBLEMS)
class TestReference:
    def test_values_are_those_of_qiskit(self, name):
        problem = PROBLEMS[name](seed=1)
        expected = values_by_qiskit(problem, problem.inputs, problem.weights)
        np.testing.assert_allclose(exact_answer(problem).values, expected, atol=1e-12)

    def test_gradients_are_differences_of_qiskits_values(self, name):
        problem = replace(PROBLEMS[name](seed=1), wants_input_gradients=True)
        answer = exact_answer(problem)

        def shifted(array: str, index: int) -> np.ndarray:
            """Every angle is a parameter of its own, so a shift by pi/2 is exact."""
            points = []
            for sign in (1, -1):
                moved = {"inputs": problem.inputs.copy(), "weights": problem.weights.copy()}
                moved[array][..., index] += sign * np.pi / 2
                points.append(values_by_qiskit(problem, **moved))
            return ((points[0] - points[1]) / 2 * problem.upstream).sum(axis=1)

        for column in range(problem.inputs.shape[1]):
            np.testing.assert_allclose(answer.input_gradients[:, column], shifted("inputs", column), atol=1e-12)
        for index in range(len(problem.weights)):
            np.testing.assert_allclose(answer.weight_gradients[index], shifted("weights", index).sum(), atol=1e-12)

    @pytest.mark.parametrize(("build", "shots"), [(ours.build, None), (ours.build, 400), (ours.build_on_aer, 400)])
    def test_layer_gives_them(self, name, build, shots):
        problem = PROBLEMS[name](seed=1)
        deviation, wrong = judged(build(problem, shots, 5).take(), problem, shots=shots, tolerance=1e-10)
        assert not wrong
        assert shots is None or deviation > 0.01

    def test_seed_draws_the_numbers(self, name):
        one, same, other = (PROBLEMS[name](seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one.inputs, same.inputs)
        assert not np.array_equal(one.inputs, other.inputs)


class TestNoise:
    @pytest.mark.parametrize("qubits", [(2,), (0, 3)])
    def test_pauli_probabilities_are_those_of_aer(self, qubits):
        noise = Depolarising(0.01, 0.03)
        expected = depolarizing_error((0.01, 0.03)[len(qubits) - 1], len(qubits)).probabilities
        np.testing.assert_allclose(noise.pauli_probabilities(qubits), sorted(expected, reverse=True), rtol=1e-12)

    @pytest.mark.parametrize("strengths", [(-0.01, 0.1), (0.1, 1.0), (0.1, math.nan)])
    def test_strengths_out_of_range_are_refused(self, strengths):
        with pytest.raises(ValueError, match="expected a strength of at least 0 and below 1"):
            Depolarising(*strengths)

    def test_system_without_noise_is_no_part_of_a_noisy_case(self):
        noiseless = next(case for case in CASES if case.name == "dressed-4")
        with pytest.raises(ValueError, match=r"got pennylane-default, .*, expected of dressed-4 only"):
            replace(noiseless, noise=Depolarising(0.1, 0.1))

    @pytest.mark.parametrize(("readout", "outputs"), [("", (8,)), ("-all", tuple(range(9)))])
    def test_nine_qubits_are_304_circuits(self, readout, outputs):
        """By parameter shift: each row as it is, and shifted up and down by each weight."""
        (case,) = (case for case in CASES if case.name == f"layerwise-9-noise-shots{readout}")
        assert case.make(seed=0).measured == outputs
        assert case.size["batch"] * (1 + 2 * case.size["weights"]) == 304
        assert case.size["gates"] == 9 + 6 * (9 + 8)


class TestPlainTorch:
    @pytest.mark.parametrize(
        ("name", "compile"),
        [
            *((name, False) for name in NOISELESS if name != "partly trained"),
            pytest.param("textbook", True, marks=pytest.mark.slow),
        ],
    )
    def test_simulator_gives_the_reference(self, name, compile):
        problem = PROBLEMS[name](seed=1)
        assert judged(peers_torch.build(problem, None, 0, compile=compile).take(), problem, tolerance=1e-12)[1] == ""

    def test_controlled_gates_whose_control_comes_behind(self):
        problem = PROBLEMS["entangling"](seed=1)
        moved = [
            gate._replace(name=name, qubits=gate.qubits[::-1])
            for gate, name in zip(problem.gates, itertools.cycle(("cx", "cz")))
            if len(gate.qubits) == 2
        ]
        problem = replace(problem, gates=(*problem.gates, *moved, *problem.gates))
        assert judged(peers_torch.build(problem, None, 0).take(), problem, tolerance=1e-12)[1] == ""

    @pytest.mark.parametrize("build", [peers_torch.build_function, peers_torch.build_cosine])
    def test_floors_are_the_textbooks_circuit(self, build):
        problem = PROBLEMS["textbook"](seed=1)
        assert judged(build(problem, None, 0).take(), problem, tolerance=1e-12)[1] == ""

    def test_without_a_compiler_it_is_absent(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        with pytest.raises(ImportError, match=r"needs a C\+\+ compiler"):
            peers_torch.build_compiled(PROBLEMS["textbook"](seed=1), None, 0)


@pytest.mark.parametrize(("name", "make"), [("dressed", gate_lists.dressed), ("layerwise", None)])
def test_published_circuits(reference, name, make):
    """The gate lists of the reference numbers, run by the reference simulator; the dressed one is built here too."""
    there = reference(name)
    kinds = {"x": "input", "w": "weight"}
    gates = []
    for gate, *rest in there["operations"]:
        qubits = tuple(part for part in rest if not isinstance(part, list))
        angle = next(((kinds[part[0]], part[1]) for part in rest if isinstance(part, list)), ())
        gates.append(gate_lists.Gate(gate, qubits, *angle))
    inputs, weights, upstream = (np.array(there[name]) for name in ("inputs", "weights", "upstream"))
    numbers = {"inputs": inputs, "weights": weights, "upstream": upstream.reshape(len(inputs), -1)}
    measured = tuple(there["observables_z_on"])
    problem = Problem(there["n_qubits"], tuple(gates), measured, wants_input_gradients=True, **numbers)
    answer = exact_answer(problem)
    np.testing.assert_allclose(answer.values, np.array(there["outputs"]).reshape(answer.values.shape), atol=1e-9)
    np.testing.assert_allclose(answer.input_gradients, there["grad_inputs"], atol=1e-9)
    np.testing.assert_allclose(answer.weight_gradients, there["grad_weights"], atol=1e-9)
    if make is not None:
        assert make(depth=6, batch=1, seed=0).gates == tuple(gates)


class TestComparison:
    @pytest.fixture
    def problem(self):
        return gate_lists.dressed(depth=6, batch=4, seed=0)

    @pytest.mark.parametrize("part", ["values", "input_gradients", "weight_gradients"])
    def test_any_wrong_number_is_seen(self, problem, part):
        answer = exact_answer(problem)
        getattr(answer, part).flat[-1] += 1e-4
        assert part.replace("_", " ") in judged(answer, problem, tolerance=1e-6)[1]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"input_gradients": None}, "gives no input gradients"),
            ({"values": np.zeros((4, 3))}, "shape"),
            ({"weight_gradients": np.full(24, np.nan)}, "not finite"),
        ],
    )
    @pytest.mark.parametrize("shots", [None, 100])
    def test_missing_parts_and_strange_numbers(self, problem, change, said, shots):
        assert said in judged(exact_answer(problem)._replace(**change), problem, shots=shots, tolerance=1.0)[1]

    @pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
    @pytest.mark.parametrize("part", ["input_gradients", "weight_gradients"])
    def test_gradients_from_shots_that_are_systematically_wrong(self, problem, part, factor):
        """2: the parameter-shift rule without its 1/2."""
        answer = Answer.of(*ours.build(problem, 1000, 3).take())
        assert judged(answer, problem, shots=1000)[1] == ""
        spoilt = answer._replace(**{part: factor * getattr(answer, part)})
        assert part.replace("_", " ") in judged(spoilt, problem, shots=1000)[1]

    def test_standard_errors_are_never_underestimated(self, problem, rng):
        """The root mean square of the scores is at most 1: of values around 0 by binomial draws it is 1."""
        expected = exact_answer(problem)._replace(values=np.zeros((4, 4)))
        draws = rng.binomial(50, 0.5, (4, 4)) / 25 - 1
        answers = [expected._replace(values=np.full((4, 4), x)) for x in draws.ravel()]
        scores = [compare(each, expected, problem, shots=50, tolerance=0)[0] for each in answers]
        assert 0.5 < np.sqrt(np.mean(np.square(scores))) < 1.5


@pytest.mark.usefixtures("_adapters")
class TestProcess:
    def prepared(self, process: Process, behaviour: str) -> dict:
        problem = {"circuit": "dressed", "sizes": {"depth": 2, "batch": 3}, "seed": 1}
        return process.ask("prepare", adapter=system(behaviour).adapter, **problem, shots=None)

    def test_prints_of_a_library_are_no_replies(self):
        with Process(None, None, 60) as process:
            said = self.prepared(process, "chatty")
            assert said["first_step_seconds"] > 0
            assert said["import_seconds"] > 0
            assert said["versions"]["numpy"] == np.__version__
            assert 0 < process.ask("measure", steps=3)["seconds"] < 60
        assert judged(said["answer"], gate_lists.dressed(depth=2, batch=3, seed=1)) == (0.0, "")

    @pytest.mark.parametrize(
        ("behaviour", "kind", "said", "timeout"),
        [
            ("absent", "absent", "no_such_library", 60),
            ("refusing", "failed", "NotImplementedError: not for batches", 60),
            ("crashing", "failed", "status 3 at 'prepare'; its last words: Segmentation fault, say", 60),
            ("hanging", "timeout", "within 0.5 s", 0.5),
        ],
    )
    def test_failures_say_why(self, behaviour, kind, said, timeout):
        with Process(None, None, timeout) as process, pytest.raises(WorkerError) as caught:
            self.prepared(process, behaviour)
        assert caught.value.kind == kind
        assert said in str(caught.value)

    def test_refusal_leaves_the_process_usable(self):
        with Process(None, None, 60) as process:
            with pytest.raises(WorkerError):
                self.prepared(process, "refusing")
            assert self.prepared(process, "right")

    def test_no_such_interpreter(self):
        with pytest.raises(WorkerError, match="nowhere/python does not start"):
            Process("nowhere/python", None, 1)

    def test_threads_are_handed_on(self):
        with Process(None, 1, 60) as process:
            threads = self.prepared(process, "right")["threads"]
        assert (threads["OMP_NUM_THREADS"], threads["PJRT_NPROC"]) == ("1", "1")  # the latter is what JAX reads


@pytest.mark.usefixtures("_adapters")
class TestRun:
    @pytest.fixture
    def run(self, folder):
        """Runs the benchmark; returns the result."""

        def run(systems: dict[str, System], *options: str, status: int = 0) -> dict:
            assert run_benchmark([*options, "--run-dir", str(folder)], systems) == status
            return json.loads((folder / "result.json").read_text())

        return run

    def test_run_folder(self, run, folder, capsys):
        options = ["--cases", "dressed-4", "batch", "fresh", "--small", "--repetitions", "2"]
        result = run(with_ours("right", "right"), *options)
        files = {path.name for path in folder.iterdir()}
        assert files == {"config.yaml", "result.json", "scaling.png", "table.md", "timings.csv"}
        rows = [row for row in RunFolder(folder).read_rows("timings.csv") if row["case"] == "dressed-4"]
        names = ("ours", "pennylane-default", "pennylane-lightning")
        expected = [(name, repetition) for name in names for repetition in range(2)]
        assert [(row["system"], row["repetition"]) for row in rows] == expected
        assert all(float(row["seconds_per_step"]) > 0 for row in rows)
        assert (rows[0]["batch"], rows[0]["weights"]) == (4, 24)
        row, named = result["cases"]["dressed-4"]["comparisons"]
        medians = {name: found["median_seconds"] for name, found in result["cases"]["dressed-4"]["systems"].items()}
        assert row["peer"] == min(set(medians) - {"ours"}, key=medians.__getitem__)
        assert row["ratio"] == pytest.approx(medians[row["peer"]] / medians["ours"])
        assert (named["peer"], named["target"]) == ("pennylane-default", 40)
        assert all(x["first_call_seconds"] > 0 for x in result["cases"]["dressed-4"]["systems"].values())
        assert "batch_exponent" in result["growth"]["ours"]
        assert {"cpu", "cores", "memory_gib", "python"} <= result["machine"].keys()
        assert result["environments"]["ours"]["versions"]["numpy"] == np.__version__
        assert [item["cache"] for item in result["fresh"]] == ["empty", "filled", "filled", "filled"]
        assert all(item["first_step_seconds"] > 0 for item in result["fresh"])
        text = (folder / "table.md").read_text()
        assert text in capsys.readouterr().out
        assert "| dressed, 4 qubits, depth 6, batch 4 | the right one |" in text
        assert re.search(r"\| system \| dressed-4 \|\n.*\n\| the right one \| [-\d.e]+ \([-\d.e]+\) \|\n", text)
        assert yaml.safe_load((folder / "config.yaml").read_text())["repetitions"] == 2

    def test_config_repeats_a_run(self, run, folder, tmp_path):
        run(with_ours("right"), "--cases", "textbook", "--systems", "ours", "--repetitions", "1")
        config, second = tmp_path / "config.yaml", tmp_path / "second"
        config.write_text((folder / "config.yaml").read_text().replace("[]", "null"))  # as earlier runs have it
        assert run_benchmark(["--config", str(config), "--run-dir", str(second)], with_ours("right")) == 0
        (row,) = RunFolder(second).read_rows("timings.csv")
        assert [row[key] for key in ("case", "system", "repetition")] == ["textbook", "ours", 0]

    def test_time_of_a_wrong_answer_is_not_reported(self, run, folder):
        result = run(with_ours("wrong", "right"), "--cases", "dressed-4", "--repetitions", "1")
        found = result["cases"]["dressed-4"]["systems"]
        wrong, right = found["pennylane-default"], found["pennylane-lightning"]
        assert right["median_seconds"] > 0
        assert wrong["status"] == "wrong"
        assert wrong["median_seconds"] is None
        assert wrong["deviation"] > 1e-3
        assert "input gradients are off" in wrong["reason"]
        rows = RunFolder(folder).read_rows("timings.csv")
        assert [row["seconds_per_step"] for row in rows if row["system"] == "pennylane-default"] == [""]
        assert "the wrong one, wrong: its input gradients are off" in (folder / "table.md").read_text()

    @pytest.mark.parametrize(
        ("peers", "options"),
        [
            ({"absent": "absent", "right": "timed"}, ()),
            pytest.param({"crashing": "failed", "right": "timed"}, (), marks=pytest.mark.slow),
            pytest.param({"crashing_later": "failed", "refusing": "failed"}, (), marks=pytest.mark.slow),
            pytest.param({"hanging": "timeout", "right": "timed"}, ("--timeout", "8"), marks=pytest.mark.slow),
        ],
        ids=str,
    )
    def test_failing_peer_is_named_and_stops_nobody(self, run, peers, options, capsys):
        cases = ["textbook"] if "hanging" in peers else ["textbook", "dressed-4"]
        result = run(with_ours(*peers), "--cases", *cases, "--repetitions", "1", *options)
        for case in result["cases"].values():
            statuses = {name: outcome["status"] for name, outcome in case["systems"].items()}
            names = ("ours", "pennylane-default", "pennylane-lightning")
            assert statuses == dict(zip(names, ["timed", *peers.values()], strict=True))
        printed = capsys.readouterr().out
        for behaviour, status in peers.items():
            assert status == "timed" or f"the {behaviour} one, {status}: " in printed

    def test_noise_is_in_what_systems_are_asked_and_in_the_reference(self, run):
        systems = {**with_ours("right"), "pennylane-mixed": system("without_noise")}
        result = run(systems, "--cases", "dressed-4-noise", "noisy-qubits", "--small", "--repetitions", "1")
        assert result["cases"].keys() == {"dressed-4-noise", "noisy-qubits-4", "noisy-qubits-6"}
        for case in result["cases"].values():
            peer = case["systems"]["pennylane-mixed"]
            assert case["systems"]["ours"]["status"] == "timed"
            # In a series, a system that has failed is not asked again.
            assert peer["status"] in ("wrong", "dropped")
            assert "its values are off" in peer["reason"]

    @pytest.mark.parametrize("behaviour", ["wrong", "crashing", "absent"])
    def test_our_own_failure_is_the_exit_status(self, run, behaviour):
        ours = {"ours": system(behaviour, is_ours=True)}
        run(ours, "--cases", "textbook", "--repetitions", "1", status=1)

    def test_failing_peer_is_dropped_from_the_rest_of_a_series(self, run):
        result = run(with_ours("refusing"), "--cases", "batch", "--small", "--repetitions", "1")
        found = [case["systems"]["pennylane-default"] for case in result["cases"].values()]
        assert [outcome["status"] for outcome in found] == ["failed", *["dropped"] * 3]
        assert found[1]["reason"].startswith("dropped after batch 1: NotImplementedError")


@pytest.mark.slow
def test_our_own_systems(folder):
    """The real adapters, in real workers, from the command line."""
    options = ["--cases", "textbook", "--small", "--repetitions", "1", "--run-dir", str(folder)]
    assert main(["benchmark", *options, "--systems", "ours", "ours-stopwatch"]) == 0
    for row in RunFolder(folder).read_rows("timings.csv"):
        assert float(row["seconds_per_step"]) > float(row["kernel_seconds_per_step"] or 0) >= 0
        assert (row["kernel_seconds_per_step"] != "") == (row["system"] == "ours-stopwatch")


def test_package_imports_nothing_and_its_options_come_without_pytorch():
    """The former because the time of imports is measured behind it, the latter so that help does not wait."""
    imports = (
        "import sys, experiments.benchmark; assert 'numpy' not in sys.modules; import experiments.benchmark.campaign"
    )
    subprocess.run([sys.executable, "-c", f"{imports}; assert 'torch' not in sys.modules"], check=True)


def test_dry_run_lists_everything_and_writes_nothing(folder, capsys):
    assert main(["benchmark", "--dry-run", "--run-dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    for name in ("entangling-20", "qubits-20", "batch-4096", "weights-192", "PennyLane qiskit.aer"):
        assert name in printed
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cases", "nosuch"], "--cases: got nosuch, expected some of textbook"),
        (["--cases", "overhead", "--systems", "pennylane-default"], "nothing to measure"),
        (["--cases", "dressed-4-noise", "--systems", "pennylane-default"], "nothing to measure"),
        (["--peer-python", "python3"], "--peer-python: got 'python3', expected SYSTEM=PYTHON"),
        (["--peer-python", "nosuch=python3"], "expected SYSTEM=PYTHON"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(folder, capsys, arguments, said):
    assert main(["benchmark", *arguments, "--run-dir", str(folder)]) == 1
    assert said in capsys.readouterr().err
    assert not folder.exists()


class TestPlan:
    def test_small_is_part_of_all(self):
        everything, fresh = plan(BenchmarkSettings())
        some, _ = plan(BenchmarkSettings(small=True))
        assert len(some) < len(everything)
        assert [c.make.keywords["num_qubits"] for c in everything if c.series == "qubits"] == [*range(4, 21, 2)]
        assert fresh
        assert {name for case in everything for name in case.systems} == set(SYSTEMS)

    def test_targets_name_systems_of_their_case(self):
        for case in CASES:
            assert {target.ours for target in case.targets} <= set(case.systems)
            assert {target.peer for target in case.targets} - {None} <= set(case.systems)

    def test_names_are_unique(self):
        names = [case.name for case in plan(BenchmarkSettings(largest_qubits=24))[0]]
        assert len(set(names)) == len(names)

    def test_selection_keeps_the_order(self):
        cases, fresh = plan(BenchmarkSettings(cases=("overhead", "textbook"), systems=("ours-stopwatch", "ours")))
        assert [(case.name, case.systems) for case in cases[:2]] == [
            ("textbook", ("ours",)),
            ("overhead-textbook", ("ours-stopwatch",)),
        ]
        assert not fresh

    def test_one_environment_may_serve_all_peers(self):
        pythons = BenchmarkSettings(peer_python=("peers=one", "pyqtorch=another")).pythons
        assert (pythons["tensorcircuit-jax"], pythons["pyqtorch"]) == ("one", "another")
        assert not any(SYSTEMS[name].ours for name in pythons)

    def test_help_names_what_can_be_selected(self):
        assert {*PARTS, *SYSTEMS} <= set(re.findall(r"[\w-]+", BenchmarkSettings.__doc__))


def measured(case: Case, **seconds: list[float] | str) -> list[Outcome]:
    """A case's outcomes: the systems' seconds, or the status of those that have none."""
    return [
        Outcome(case=case, system=name.replace("_", "-"), status=found, reason="why")
        if isinstance(found, str)
        else Outcome(case=case, system=name.replace("_", "-"), deviation=0.0, steps=1, seconds=found)
        for name, found in seconds.items()
    ]


class TestSummary:
    case = Case(
        "tiny",
        "a tiny case",
        partial(gate_lists.dressed, depth=1, batch=2),
        ("ours", "pennylane-default", "qiskit-machine-learning"),
        targets=(Target(3), Target(100, peer="qiskit-machine-learning")),
    )

    def compared(self, **seconds: list[float] | str) -> tuple:
        """Against the best, against a named peer, and the text."""
        outcomes = measured(self.case, **seconds)
        ((case, found),) = by_case(outcomes)
        return *comparisons(case, found, SYSTEMS), markdown(outcomes, [], SYSTEMS, MACHINE)

    def test_medians_and_ratios(self):
        peers = {"pennylane_default": [5.0, 6.0, 60.0], "qiskit_machine_learning": [100.0, 110.0, 120.0]}
        best, named, text = self.compared(ours=[1.0, 9.0, 2.0], **peers)
        assert best[:6] == ("ours", "pennylane-default", 3.0, 5.0, 3, True)
        assert named[:6] == ("ours", "qiskit-machine-learning", 55.0, 100.0, 100, False)
        assert (
            "| a tiny case | ours | 2000 | PennyLane default.qubit (fastest PyTorch layer), 6000 | 3 | 5 | 3 |" in text
        )

    def test_fastest_is_a_layer(self):
        """A step that JAX compiles may be faster, and is compared by its name."""
        case = replace(self.case, targets=(Target(1.5, peer="tensorcircuit-jax"),))
        ((_, found),) = by_case(measured(case, ours=[1.0], pennylane_default=[3.0], tensorcircuit_jax=[0.5]))
        best, named = comparisons(case, found, SYSTEMS)
        assert (best.peer, best.ratio) == ("pennylane-default", 3.0)
        assert (named.peer, named.ratio) == ("tensorcircuit-jax", 0.5)

    def test_seconds_to_reach_beside_a_ratio_to_another_system_of_ours(self):
        for ratio, said in (100, "100, below 50 ms"), (math.nan, "below 50 ms"):
            case = replace(self.case, targets=(Target(ratio, peer="ours-aer", seconds=0.05),))
            outcomes = measured(case, ours=[0.02, 0.04, 0.03], ours_aer=[6.0])
            ((_, seen),) = by_case(outcomes)
            named = comparisons(case, seen, SYSTEMS)[1]
            assert (named.peer, named.ratio, named.least_ratio) == ("ours-aer", 200.0, 300.0)
            text = markdown(outcomes, [], SYSTEMS, MACHINE)
            assert f"| a tiny case | ours | 30.0 | ours on Aer (named), 6000 | 200 | 300 | {said} |" in text

    def test_without_peers_there_is_no_ratio(self):
        best, named, text = self.compared(ours=[1.0], pennylane_default="absent", qiskit_machine_learning="wrong")
        assert best.peer is None
        assert math.isnan(best.ratio)
        assert math.isnan(named.ratio)
        assert "| a tiny case | ours | 1000 | none timed | - | - | 3 |" in text
        assert "- PennyLane default.qubit, absent: why (tiny)" in text

    def test_failure_after_some_timings_leaves_none(self):
        (peer,) = measured(self.case, pennylane_default=[0.1])
        calls = []

        def fail(outcome: Outcome) -> None:
            calls.append(outcome)
            raise WorkerError("failed", "it has ended")

        for _ in range(2):
            peer.attempt(fail)
        assert calls == [peer]
        assert (peer.status, peer.why) == ("failed", "failed: it has ended")
        rows = timing_rows([*measured(self.case, ours=[1.0, 2.0]), peer])
        found = [(row["system"], row["seconds_per_step"]) for row in rows]
        assert found == [("ours", 1.0), ("ours", 2.0), ("pennylane-default", "")]

    def test_growth(self):
        def point(axis: str, seconds: float, make: partial = gate_lists.dressed, **sizes: int) -> Outcome:
            case = Case("", "", partial(make, **{"batch": 1, **sizes}), ("ours",), series=axis)
            return Outcome(
                case=case, system="ours", seconds=[seconds * (case.size["gates"] if axis == "qubits" else 1)]
            )

        noisy_layers = partial(point, "noisy-qubits", make=partial(gate_lists.layerwise, layers=1))
        wide = partial(point, "wide-qubits", make=partial(gate_lists.brickwork, layers=1))
        entangling = partial(point, "qubits", make=partial(gate_lists.entangling, layers=1))
        outcomes = [
            *(point("batch", 5.0 + x**2, batch=x, depth=1) for x in (1, 4, 16)),
            *(point("batch", 1e-3 * x, batch=x, depth=1) for x in (256, 1024, 4096)),
            *(point("weights", float(x**2), depth=x) for x in (1, 24, 48)),
            *(noisy_layers(7.0 if x == 4 else 3.0**x, num_qubits=x) for x in (4, 8, 10)),
            *(wide(8.0 if x == 25 else 2.0 * x, num_qubits=x) for x in (25, 50, 200)),
            *(entangling((1.5 if x == 20 else 1.0) * 2.0**x, num_qubits=x) for x in (4, 12, 20)),
        ]
        rates = {"batch_exponent": 1, "weights_exponent": 2, "qubits_constant_ratio": 1.5, "noisy_qubits_factor": 3}
        rates["wide_qubits_exponent"] = 1
        assert growth(outcomes, "ours") == pytest.approx(rates)
        assert growth(outcomes[:2], "ours") == {}

    @pytest.mark.parametrize(("step", "repetitions"), [(1e-5, 7), (4.0, 7), (9.0, 3), (16.0, 1), (500.0, 1)])
    def test_long_steps_are_repeated_less(self, step, repetitions):
        assert fewer_repetitions(step, 7, in_series=False) == repetitions
        assert fewer_repetitions(step, 7, in_series=True) <= repetitions


MACHINE = {
    **{"cpu": "a processor", "cores": 2, "cores_available": 2, "memory_gib": 8.0, "system": "an OS", "python": "3.11"},
    "load_at_start": 0.1,
}


class TestStopwatch:
    class Backend(StatevectorBackend):
        """With a method that the benchmark has never heard of."""

        def a_later_addition(self, x: int) -> int:
            return self.resolve_shots(x) + 1

    def test_counts_every_method_and_changes_nothing(self):
        problem = gate_lists.dressed(depth=2, batch=3, seed=0)
        backend, seconds = ours.with_stopwatch(self.Backend())
        assert isinstance(backend, self.Backend)
        assert backend.name == StatevectorBackend().name
        assert backend.a_later_addition(4) == 5
        step = ours.build(problem, None, 0, backend=backend)
        before = seconds()
        parts = step.take()
        assert seconds() > before
        assert judged(parts, problem, tolerance=1e-10)[1] == ""

    def test_counts_the_object_that_does_a_backends_steps(self):
        class Kernel:
            def forward(self) -> str:
                return "values"

        class Stepping(self.Backend):
            def step_of(self, program: object) -> Kernel | None:
                return Kernel() if program else None

        backend, seconds = ours.with_stopwatch(Stepping())
        step = backend.step_of("a program")
        assert backend.step_of("a program") is step
        assert backend.step_of(None) is None
        assert isinstance(step, Kernel)
        before = seconds()
        assert step.forward() == "values"
        assert seconds() > before

    def test_adapter_counts_kernel_seconds(self):
        step = ours.build_with_stopwatch(gate_lists.textbook(batch=1, seed=0), None, 0)
        assert step.kernel_seconds is not None
        before = step.kernel_seconds()
        step.take()
        assert step.kernel_seconds() > before
