"""What is said of arguments that do not fit: checks that several public names share."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Mapping, MappingView, Set
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "did_you_mean",
    "explain_misfits",
    "in_gibibytes",
    "instance_of",
    "number_from",
    "one_of",
    "refuse_unordered",
    "require_dense",
    "require_integer",
    "require_number",
]

_MOST_GUESSES = 3
_MOST_GIBIBYTES_WRITTEN_OUT = 10**6

_Class = TypeVar("_Class", bound=Any)

# What qiskit-machine-learning's and PennyLane's users call things: the argument here that it concerns, and what to do.
_ELSEWHERE = {
    "input_params": ("inputs", "it is called inputs= here"),
    "weight_params": ("weights", "it is called weights= here"),
    "params": ("weights", "say which parameters are inputs= and which are weights="),
    "parameters": ("weights", "say which parameters are inputs= and which are weights="),
    "feature_map": ("inputs", "compose one circuit of both, and give inputs=feature_map.parameters"),
    "ansatz": ("weights", "compose one circuit of both, and give weights=ansatz.parameters"),
    "initial_weights": ("init", "it is called init= here"),
    "init_method": ("init", "it is called init= here"),
    "weight_shapes": ("weights", "give the circuit's trainable parameters as weights="),
    "input_gradients": ("inputs", "features that require grad get their gradient without being asked for"),
    "num_qubits": ("inputs", "leave it out: the circuit has its qubits"),
    "output_shape": ("interpret", "leave it out: it follows from observables= or probabilities= with interpret="),
    "sparse": ("probabilities", "leave it out: outputs are dense"),
    "wires": ("probabilities", "name the measured qubits as probabilities="),
    "qubits": ("probabilities", "name the measured qubits as probabilities="),
    "measured": ("probabilities", "name the measured qubits as probabilities="),
    "sampler": ("backend", "give it as backend="),
    "estimator": ("backend", "give it as backend="),
    "quantum_instance": ("backend", "give the backend as backend="),
    "qnode": ("circuit", "give a QuantumCircuit"),
    "device": ("backend", "say where circuits run with backend=, and move the weights with layer.to(device)"),
    "dtype": ("init", "move the weights with layer.to(dtype)"),
    "pass_manager": ("backend", "transpile the circuit with it before (a layout is respected), or set backend="),
    "default_precision": ("shots", "give shots="),
    "precision": ("shots", "give shots="),
    "diff_method": ("gradient", "it is called gradient= here"),
    "qnn": ("circuit", "give its circuit, and its parameters as inputs= and weights="),
    "neural_network": ("circuit", "give its circuit, and its parameters as inputs= and weights="),
}


def explain_misfits(cls: _Class) -> _Class:
    """A class whose constructor says, of a call that does not fit its signature, what would fit.

    The signature stays what it is, for type checkers and for ``help()``.
    """
    init = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            misfit = _misfit(list(signature.parameters.values())[1:], args, kwargs) or str(error)
        else:
            return init(self, *args, **kwargs)
        raise TypeError(f"{type(self).__name__}: {misfit}.")

    cls.__init__ = checked
    return cls


def _misfit(parameters: list[inspect.Parameter], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    names = [parameter.name for parameter in parameters]
    positional = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    if strange := [name for name in kwargs if name not in names]:
        return "; ".join(f"got an unknown argument {name}= ({_remedy(name, names)})" for name in strange)
    if len(args) > len(positional):
        options = ", ".join(f"{name}=" for name in names if name not in positional)
        return (
            f"got {len(args)} positional arguments, expected {len(positional)} ({', '.join(positional)}); give the others "
            f"by name: {options}"
        )
    return ""


def _remedy(name: str, known: list[str]) -> str:
    about, remedy = _ELSEWHERE.get(name.lower(), ("", ""))
    if about in known:
        return remedy
    if alike := get_close_matches(name, known, n=1):
        return f"did you mean {alike[0]}=?"
    return f"expected some of {', '.join(known)}"


def require_integer(name: str, value: Any, *, least: int = 1) -> int:
    """The value as an ``int``.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected an integer of at least {least}.")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}.")
    return int(value)


def require_number(name: str, value: Any) -> float:
    """The value as a ``float``.

    Raises:
        TypeError: If it is no real number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected a number.")
    return float(value)


def refuse_unordered(name: str, given: Any) -> None:
    """Refuses sets, which give strings, and much else, in another order in the next process.

    Raises:
        TypeError: If it is a set; a dictionary's keys, which have an order, are none.
    """
    if isinstance(given, Set) and not isinstance(given, MappingView):
        raise TypeError(f"{name}: got a {type(given).__name__}, which has no order, expected a sequence.")


def require_dense(name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor whose numbers cannot be read: sparse, nested, or on the meta device.

    Raises:
        TypeError: If it is one.
    """
    import torch  # here, because the command line wants the other checks at once

    if tensor.is_meta:
        raise TypeError(f"{name}: got a tensor on the meta device, which has no numbers; make it on a real device.")
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else f"{tensor.layout}"
        raise TypeError(f"{name}: got a tensor that is {kind}, expected a dense one; call its to_dense() method.")


def did_you_mean(word: str, known: Iterable[str], written: Mapping[str, str] | None = None) -> str:
    """The known words nearest to a misspelt one, as the end of a sentence; empty where none is near.

    Args:
        word: What was given.
        known: What there is.
        written: How known words are written in the sentence; None: as they are.
    """
    near = get_close_matches(word.lower(), list(known), n=_MOST_GUESSES)
    return f"; did you mean {' or '.join(repr((written or {}).get(each, each)) for each in near)}?" if near else ""


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """The value, if it is one of the allowed words.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, str) and value in allowed:
        return value
    guess = did_you_mean(value, allowed) if isinstance(value, str) else ""
    raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, allowed))}{guess or '.'}")


def instance_of(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
    """The value, if it is of a kind.

    Raises:
        TypeError: If it is not.
    """
    if isinstance(value, kind):
        return value
    raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected {expected}.")


def number_from(name: str, value: Any, *, least: float = 0, whole: bool = False, also: str = "") -> Any:
    """The value, if it is a finite number that is large enough; a whole one as an integer.

    Args:
        name: The setting's.
        value: What was given.
        least: The smallest number that it takes.
        whole: Whether fractions are refused.
        also: What else the setting takes, for the message.

    Raises:
        ValueError: If it is not.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    is_finite = is_number and (isinstance(value, Integral) or math.isfinite(value))
    if is_finite and value >= least and not (whole and value != int(value)):
        return int(value) if whole else value
    kind = "a whole number" if whole else "a finite number"
    raise ValueError(f"{name}: got {value!r}, expected {kind} from {least:g}{also}.")


def in_gibibytes(size: int) -> str:
    """A number of bytes; of enormous ones only the power of ten is of interest."""
    whole = size >> 30
    if whole >= _MOST_GIBIBYTES_WRITTEN_OUT:
        return f"some 10**{math.floor(math.log10(whole))} GiB"
    return f"{size / 2**30:,.1f} GiB"
