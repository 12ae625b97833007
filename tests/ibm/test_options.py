"""IBM's options: those with which results could not be read, or prices not be known, are refused before any job."""

import warnings

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from pydantic import BaseModel
from qiskit_ibm_runtime import EstimatorOptions as OldEstimatorOptions
from qiskit_ibm_runtime import SamplerOptions as OldSamplerOptions
from qiskit_ibm_runtime import SamplerV2 as OldSampler
from qiskit_ibm_runtime.executor_sampler import Sampler
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from qiskit_ibm_runtime.options_models import EstimatorOptions, ExecutorOptions, SamplerOptions

from qiskit_torch_bridge import IBMBackend, QuantumLayer
from qiskit_torch_bridge.backends.ibm.primitive_options import checked_options

NAN, INF = float("nan"), float("inf")


def layer_on(backend, **options) -> QuantumLayer:
    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.cx(0, 1)
    circuit.rx(w[0], 1)
    options = {"observables": ["ZI", "XX"], "shots": 20, "seed": 1, **options}
    return QuantumLayer(circuit, inputs=x, weights=w, backend=backend, **options)


# --- IBM's options ----------------------------------------------------------------------------------------------------

LAYER_NOISE = {"layer_noise_model": []}
UNFIT = [
    ("sampler", {"execution": {"meas_type": "kerneled"}}, "execution.meas_type"),
    ("sampler", {"execution": {"meas_type": "avg_kerneled"}}, "execution.meas_type"),
    ("sampler", {"execution": {"init_qubits": False}}, "execution.init_qubits"),
    ("estimator", {"execution": {"init_qubits": False}}, "execution.init_qubits"),
    ("sampler", {"execution": {"rep_delay": -1e-3}}, "execution.rep_delay"),
    ("sampler", {"execution": {"rep_delay": NAN}}, "execution.rep_delay"),
    ("sampler", {"execution": {"rep_delay": 250}}, "execution.rep_delay"),
    ("sampler", {"environment": {"private": True}}, "environment.private"),
    ("sampler", {"environment": {"max_execution_time": 100}}, "environment.max_execution_time"),
    ("estimator", {"experimental": {"execution": {"fast": True}}}, "experimental"),
    ("sampler", {"max_execution_time": 0}, "max_execution_time"),
    ("sampler", {"default_shots": 0}, "default_shots"),
    ("sampler", {"default_shots": -5}, "default_shots"),
    ("estimator", {"default_shots": 0}, "default_shots"),
    ("estimator", {"default_precision": INF}, "default_precision"),
    ("estimator", {"default_precision": 5.0}, "default_precision"),
    ("estimator", {"default_precision": 1e-200}, "default_precision"),
    ("sampler", {"simulator": {"seed_simulator": 5}}, "simulator.seed_simulator"),
    ("sampler", {"simulator": {"angle_decimals": 2}}, "simulator.angle_decimals"),
    ("sampler", {"simulator": LAYER_NOISE}, "simulator.layer_noise_model"),
    ("estimator", {"resilience": LAYER_NOISE}, "resilience.layer_noise_model"),
    ("estimator", {"resilience": {"pec_mitigation": True}}, "resilience.pec_mitigation"),
    ("estimator", {"resilience": {"zne": {"amplifier": "pea"}}}, "resilience.zne.amplifier"),
]


@pytest.mark.parametrize(("primitive", "options", "path"), UNFIT, ids=str)
@pytest.mark.parametrize("as_object", [False, True])
def test_options_that_spoil_results_or_prices_are_refused(primitive, options, path, as_object):
    if as_object:
        kind = {"sampler": SamplerOptions, "estimator": EstimatorOptions}[primitive]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            options = kind(**options)
    with pytest.raises(ValueError, match=rf"^options: got {path} = .*expected"):
        IBMBackend("fake_manila", primitive=primitive, options=options)


FOLDING = {"amplifier": "gate_folding_back", "noise_factors": [1, 2, 3], "extrapolator": "linear"}
DECOUPLING = {"enable": True, "extra_slack_distribution": "edges", "scheduling_method": "asap"}
DECOUPLING |= {"skip_reset_qubits": True}
TAKEN = {
    "sampler": [
        {"default_shots": 9, "max_execution_time": 100},
        {"execution": {"rep_delay": 2e-4, "scheduler_timing": True, "stretch_values": True}},
        {"environment": {"log_level": "INFO", "job_tags": ["mine"], "image": "image:1.2"}},
        {"simulator": {"warn_absent": False}},
        *({"twirling": {which: True, "strategy": "all"}} for which in ("enable_gates", "enable_measure")),
        {"twirling": {"enable_gates": True, "group": "balanced_pauli", "num_randomizations": 4}},
        {"twirling": {"enable_gates": True, "group": "local_c1", "shots_per_randomization": 3}},
        *({"dynamical_decoupling": {"enable": True, "sequence_type": kind}} for kind in ("XX", "XpXm", "XY4")),
        {"dynamical_decoupling": DECOUPLING},
    ],
    "estimator": [
        *({"resilience_level": level} for level in (0, 1, 2)),
        {"default_precision": 0.2, "resilience": {"measure_mitigation": False, "pec": {"max_overhead": 5}}},
        {"resilience": {"measure_noise_learning": {"num_randomizations": 4}}},
        {"resilience": {"zne_mitigation": True, "zne": FOLDING}},
        {"resilience": {"zne_mitigation": True, "zne": {"extrapolated_noise_factors": [0.5]}}},
    ],
}
"""Each leaves results readable and prices known; every option of IBM's is here or in ``UNFIT`` (see below)."""


@pytest.mark.slow
@pytest.mark.parametrize(("primitive", "options"), [(kind, o) for kind, some in TAKEN.items() for o in some], ids=str)
def test_options_that_are_taken_work_to_the_end(primitive, options):
    backend = IBMBackend("fake_manila", primitive=primitive, options=options)
    layer = layer_on(backend, shots=300, observables=["IZ"])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="qiskit_mitigation")  # extrapolations of noise
        values = layer(torch.tensor([[0.3]]))
        exact = layer_on(None, shots=None, observables=["IZ"], init=layer.weights.detach())(torch.tensor([[0.3]]))
    assert (values - exact).abs().max() < 0.6  # the device's noise, amplified by extrapolation
    assert [entry.state for entry in backend.ledger.entries()] == ["done"]


def paths_of(model: type[BaseModel], before: str = "") -> set[str]:
    """All options of a model, those within its models too."""
    paths = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, BaseModel)
        paths |= paths_of(inner, f"{before}{name}.") if nested else {f"{before}{name}"}
    return paths


def paths_in(options: dict, before: str = "") -> set[str]:
    paths = set()
    for name, value in options.items():
        paths |= paths_in(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}"}
    return paths


def test_every_option_of_ibms_is_decided():
    """One that a later version of IBM's client brings must be looked at: results, prices."""
    decided = {"resilience.pec.noise_gain", "execution.meas_type"}  # of what is refused; IBM's default
    decided |= {path for these in TAKEN.values() for options in these for path in paths_in(options)}
    decided |= {path for _, _, path in UNFIT}
    assert paths_of(SamplerOptions) | paths_of(EstimatorOptions) == decided


@pytest.mark.parametrize(
    ("primitive", "wrong"),
    [
        *(("sampler", wrong) for wrong in (EstimatorOptions(), ExecutorOptions(), OldEstimatorOptions())),
        *(("estimator", wrong) for wrong in (SamplerOptions(), OldSamplerOptions())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_options_of_another_primitive_are_refused_by_name(primitive, wrong):
    expected = rf"options: got {type(wrong).__name__}, but primitive='{primitive}' takes {primitive.title()}Options"
    with pytest.raises(TypeError, match=expected):
        IBMBackend("fake_manila", primitive=primitive, options=wrong)


@pytest.mark.parametrize(
    ("primitive", "options", "found"),
    [
        ("sampler", SamplerOptions(default_shots=9), {"default_shots": 9}),
        ("sampler", SamplerOptions(twirling={"enable_gates": True}), {"twirling": {"enable_gates": True}}),
        ("estimator", EstimatorOptions(resilience_level=0), {"resilience_level": 0}),
        ("sampler", OldSamplerOptions(default_shots=9), {"default_shots": 9}),
        ("sampler", SamplerOptions(), {}),
    ],
    ids=str,
)
def test_options_objects_are_what_mappings_are(primitive, options, found):
    backend = IBMBackend("fake_manila", primitive=primitive, options=options)
    expected = checked_options(primitive, found)
    assert checked_options(primitive, backend.options) == expected
    if not isinstance(options, OldSamplerOptions):
        assert backend.options == found


def test_options_of_the_deprecated_classes_keep_what_was_set():
    options = OldSamplerOptions()
    options.twirling.enable_gates = True
    options.dynamical_decoupling.sequence_type = "XY4"
    found = IBMBackend("fake_manila", options=options).options
    assert found["twirling"] == {"enable_gates": True}
    assert found["dynamical_decoupling"] == {"sequence_type": "XY4"}


def test_a_misspelt_option_is_guessed():
    with pytest.raises(ValueError, match=r"did you mean 'default_shots'"):
        IBMBackend("fake_manila", options={"default_shot": 5})


def test_default_shots_of_none_need_shots():
    backend = IBMBackend("fake_manila", options={"default_shots": None})
    assert backend.resolve_shots(7) == 7
    with pytest.raises(ValueError, match=r"^shots: got None"):
        backend.resolve_shots(None)


def test_twirling_with_fewer_shots_than_asked_for_is_refused():
    twirling = {"enable_gates": True, "num_randomizations": 2, "shots_per_randomization": 10}
    backend = IBMBackend("fake_manila", options={"twirling": twirling})
    with pytest.raises(ValueError, match=r"shots: got 21, but .*2 randomizations of 10 shots"):
        layer_on(backend, shots=21).quote(1)
    quote = layer_on(backend, shots=19).quote(1)
    assert quote.executions == 20 * quote.circuits


def test_a_job_is_no_longer_than_its_maximal_time():
    """One that the service would cut off, it would also bill."""
    seconds = {"max_execution_time": 10}
    quotes = [layer_on(IBMBackend("fake_manila", options=o), shots=1000).quote(40) for o in ({}, seconds)]
    assert quotes[0].jobs < quotes[1].jobs
    assert quotes[1].qpu_seconds <= quotes[1].jobs * 10
    with pytest.raises(ValueError, match=r"at most .* 2 s a job"):
        layer_on(IBMBackend("fake_manila", options={"max_execution_time": 2}), shots=1000).quote(1)


def test_a_repetition_delay_beyond_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"rep_delay = 0.9 s, but fake_manila takes 0 to 0.0005 s"):
        layer_on(IBMBackend("fake_manila", options={"execution": {"rep_delay": 0.9}}))


@pytest.mark.parametrize("kind", [Sampler, OldSampler])
@pytest.mark.parametrize("meas_type", ["kerneled", "avg_kerneled"])
def test_a_plain_sampler_that_gives_no_bits_is_refused_too(kind, meas_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old ones are deprecated
        sampler = kind(mode=FakeManilaV2())
    sampler.options.execution.meas_type = meas_type
    with pytest.raises(ValueError, match=rf"meas_type = '{meas_type}'.*expected 'classified'"):
        layer_on(sampler)
