"""What the user names as inputs and weights: lists of parameters, and where each parameter's value comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from torch import nn

from ..arguments import refuse_unordered
from .angles import SourceColumn

__all__ = ["flatten_parameters", "source_columns", "weight_groups"]

_PARAMETERS = (Parameter, ParameterVector)
_SAME_NAME = " (Parameters are told apart by object: one of the same name that was made elsewhere is another.)"


def flatten_parameters(
    parameters: Parameter | ParameterVector | Iterable[Parameter | ParameterVector], name: str
) -> list[Parameter]:
    """The parameters in column order; vectors are spelled out.

    Raises:
        TypeError: If something else is among them.
        ValueError: If one is named twice.
    """
    if isinstance(parameters, _PARAMETERS):
        parameters = [parameters]
    refuse_unordered(name, parameters)
    if isinstance(parameters, Mapping) and parameters:
        raise TypeError(
            f"{name}: got a mapping, whose values would be lost, expected a list of Parameters; values come with a call's "
            "features (for inputs) or as init= (for weights), and circuit.assign_parameters binds constants."
        )
    if isinstance(parameters, (str, bytes)) or not isinstance(parameters, Iterable):
        raise TypeError(
            f"{name}: got {parameters!r}, expected a Parameter, a sequence of Parameters, or a ParameterVector."
        )
    flat: list[Parameter] = []
    for entry in parameters:
        if not isinstance(entry, _PARAMETERS):
            raise TypeError(
                f"{name}: got {entry!r} ({type(entry).__name__}), expected Parameters or a ParameterVector "
                "(the objects in the circuit, not their names or values)."
            )
        flat += entry if isinstance(entry, ParameterVector) else [entry]
    repeated = {p.name for p in flat if flat.count(p) > 1} if len(set(flat)) < len(flat) else set()
    if repeated:
        raise ValueError(f"{name}: {', '.join(sorted(repeated))} named more than once, expected each parameter once.")
    return flat


def weight_groups(weights: Any) -> dict[str, list[Parameter]]:
    """The weights in column order, group by group; one group named ``"weights"`` where the user names none.

    Raises:
        TypeError, ValueError: As :func:`flatten_parameters`, or if a group's name cannot be a parameter's.
    """
    if not isinstance(weights, Mapping) or not weights or isinstance(next(iter(weights)), _PARAMETERS):
        return {"weights": flatten_parameters(weights, "weights")}
    groups = {}
    for name, group in weights.items():
        if not isinstance(name, str):
            raise TypeError(f"weights: got the group name {name!r} ({type(name).__name__}), expected a string.")
        if not name or "." in name or hasattr(nn.ParameterDict, name):
            raise ValueError(
                f"weights: got the group name {name!r}, expected a name for a parameter: not empty, without dots, and none "
                "that nn.ParameterDict needs itself."
            )
        groups[name] = flatten_parameters(group, f"weights[{name!r}]")
    return groups


def source_columns(
    circuit: QuantumCircuit, inputs: list[Parameter], weights: dict[str, list[Parameter]]
) -> dict[Parameter, SourceColumn]:
    """Which source and column holds each parameter's value."""
    columns: dict[Parameter, SourceColumn] = {}
    owners: dict[Parameter, str] = {}
    named = [("inputs", inputs)] + [
        (f"weights ({name})" if len(weights) > 1 else "weights", group) for name, group in weights.items()
    ]
    for source, (name, group) in enumerate(named):
        for column, parameter in enumerate(group):
            if parameter in owners:
                raise ValueError(
                    f"Parameter {parameter.name} is in both {owners[parameter]} and {name}; expected it in one. "
                    "Use two parameters, or leave it out of one list."
                )
            owners[parameter] = name
            columns[parameter] = (source, column)
    names, in_circuit = {parameter.name for parameter in owners}, set(circuit.parameters)
    if forgotten := [p.name for p in circuit.parameters if p not in owners]:
        raise ValueError(
            f"Parameter(s) {', '.join(forgotten)} of the circuit are in neither inputs nor weights; name each in one of "
            f"them, or bind it with circuit.assign_parameters.{_SAME_NAME if names & set(forgotten) else ''}"
        )
    if strange := [f"{p.name} (in {owners[p]})" for p in owners if p not in in_circuit]:
        raise ValueError(
            f"Parameter(s) {', '.join(strange)} are not in the circuit, which has "
            f"{[p.name for p in circuit.parameters]}; leave them out."
        )
    return columns
