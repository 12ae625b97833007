"""The options of IBM's primitives: checked before they can cost anything, and completed as the primitives do it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

from ...arguments import did_you_mean
from .errors import EXTRA_IS_MISSING

__all__ = ["checked_options", "finalized_options", "why_no_free_rzz"]

_ABSENT = object()
_PLAIN = "; SamplerBackend and EstimatorBackend take IBM's primitives with it, without a ledger and caps"
_UNNAMED = "a ledger has no name for it"
_UNFIT: dict[str, tuple[tuple[Any, ...], str]] = {
    "execution.init_qubits": ((True,), "a shot would begin in the state that the one before has left behind"),
    "execution.meas_type": (("classified",), "values are read from bits, not from the points of a measured signal"),
    "environment.private": (
        (False,),
        f"the result of a private job can be read only once, so that a lost connection would lose it{_PLAIN}",
    ),
    "environment.max_execution_time": (
        (None,),
        "IBM's client does not heed it; give max_execution_time beside environment",
    ),
    "experimental": (({},), f"what it does to results and prices is not known{_PLAIN}"),
    "simulator.seed_simulator": ((None,), "the layer's seed is used; give QuantumLayer(..., seed=...)"),
    "simulator.angle_decimals": ((5,), "angles are simulated as they are, not rounded"),
    "simulator.layer_noise_model": ((None,), f"{_UNNAMED}; give a simulated device with noise"),
    "resilience.layer_noise_model": ((None,), f"{_UNNAMED}{_PLAIN}"),
    "resilience.pec_mitigation": (
        (False,),
        f"its cost is not known before it has run, so that no cap could be kept; use zne_mitigation{_PLAIN}",
    ),
    "resilience.zne.amplifier": (
        ("gate_folding", "gate_folding_front", "gate_folding_back"),
        f"it needs a layer_noise_model, and {_UNNAMED}{_PLAIN}",
    ),
}
"""The options with which results could not be read or prices not be known: the values that are taken, and why no others.

All others are taken: shots, precision, twirling, delays, mitigation and maximal times are in the price; decoupling, logs,
tags, images and timings change neither results' form nor executions. A test names each option of IBM's.
"""

_RANGES: dict[str, tuple[float, float]] = {
    "default_shots": (1, 2**31 - 1),
    "default_precision": (2**-15, 1.0),  # of one shot; below it are more shots than any job takes
    "max_execution_time": (1, math.inf),
    "execution.rep_delay": (0.0, 1.0),  # seconds: devices have some hundred microseconds
}


def checked_options(primitive: str, options: Any) -> Any:
    """The primitive's options as IBM's own object.

    Args:
        primitive: ``"sampler"`` or ``"estimator"``.
        options: A mapping, or an options object of IBM's for this primitive (of the deprecated primitives too).

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        TypeError: If they are neither, or the other primitive's.
        ValueError: If there is no such option, it does not take that value, or it is one that is not supported here.
    """
    try:
        from pydantic import ValidationError
        from qiskit_ibm_runtime.options_models import EstimatorOptions, SamplerOptions
    except ImportError as error:
        raise ImportError(f"An IBM backend {EXTRA_IS_MISSING}") from error
    Options = SamplerOptions if primitive == "sampler" else EstimatorOptions  # noqa: N806
    given = _options_as_mapping(primitive, options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what is deprecated is refused below
            checked = Options(**given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        unknown = [str(each["loc"][-1]) for each in error.errors() if each["type"] == "extra_forbidden"]
        guess = did_you_mean(unknown[0], Options.model_fields) if unknown else ""
        raise ValueError(
            f"options: {wrong}; expected options of IBM's {primitive.title()}: {', '.join(Options.model_fields)}"
            f"{guess or '.'}"
        ) from None
    _require_supported(checked)
    return checked


def _require_supported(options: Any) -> None:
    for path, (taken, why) in _UNFIT.items():
        value = _option(options, path)
        if value is not _ABSENT and value not in taken:
            raise ValueError(f"options: got {path} = {value!r}, expected {' or '.join(map(repr, taken))}: {why}.")
    for path, (least, most) in _RANGES.items():
        value = _option(options, path)
        if value not in (_ABSENT, None) and not least <= value <= most:
            raise ValueError(f"options: got {path} = {value!r}, expected a number from {least:g} to {most:g}.")


def _option(options: Any, path: str) -> Any:
    """An option by its path, such as ``"execution.rep_delay"``; ``_ABSENT`` where this primitive has none of that name."""
    for name in path.split("."):
        options = getattr(options, name, _ABSENT)
    return options


def _options_as_mapping(primitive: str, options: Any) -> dict[str, Any]:
    """What has been set in options: in a mapping, in a model, or in a dataclass of the deprecated primitives."""
    kind = type(options).__name__
    if kind in ("SamplerOptions", "EstimatorOptions", "ExecutorOptions"):
        if kind != f"{primitive.title()}Options":
            raise TypeError(
                f"options: got {kind}, but primitive={primitive!r} takes {primitive.title()}Options; give those, or the "
                "other primitive."
            )
        return options.model_dump(exclude_unset=True) if hasattr(options, "model_dump") else _set_fields(options)
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise TypeError(
            f"options: got {options!r} ({kind}), expected a mapping of IBM's names to values, such as "
            f'{{"twirling": {{"enable_gates": True}}}}, or IBM\'s {primitive.title()}Options.'
        )
    return dict(options)


def _set_fields(options: Any) -> dict[str, Any]:
    """What has been set in a dataclass of the deprecated primitives, whose fields are ``Unset`` or None otherwise."""
    mapping = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            value = _set_fields(value)
        if field.name.startswith("_") or value is None or value == {} or type(value).__name__ == "UnsetType":
            continue
        mapping[field.name] = value
    return mapping


def finalized_options(primitive: str, options: Mapping[str, Any]) -> Any:
    """The same, with what the resilience level and the primitive itself settle filled in."""
    from qiskit_ibm_runtime.executor_estimator.finalize_options import finalize_estimator_options
    from qiskit_ibm_runtime.executor_sampler.finalize_options import finalize_sampler_options

    finalize = finalize_sampler_options if primitive == "sampler" else finalize_estimator_options
    return finalize(checked_options(primitive, options))


def why_no_free_rzz(options: Any) -> str | None:
    """Why free angles of fractional ``rzz`` do not go with a primitive's finalized options; None: they do."""
    resilience = getattr(options, "resilience", None)
    if resilience is not None and resilience.zne_mitigation:
        return "zero-noise extrapolation amplifies the noise of cx, cz and ecr, and that of rzz not (qiskit-mitigation 0.1)"
    if options.twirling.enable_gates and options.twirling.group != "local_pauli":
        return (
            f"twirling.enable_gates with group={options.twirling.group!r} does not take rzz with free angles, as "
            "group='local_pauli' does"
        )
    return None
