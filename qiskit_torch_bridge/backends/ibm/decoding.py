"""Results as IBM's client decodes them, once it is sure that they are those of the job that was sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, reduce
from importlib.metadata import version
from typing import Any

import numpy as np

from ..results import WrongResult
from .errors import HardwareError
from .ledger import TAG

__all__ = ["as_it_came", "decoded", "require_known_decoders"]


@cache
def as_it_came() -> Any:
    """A decoder that leaves a result as it is."""
    from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    class AsItCame(ResultDecoder):
        @classmethod
        def decode(cls, data: Any) -> Any:
            return data

    return AsItCame


def require_known_decoders() -> None:
    """Refuses a client whose way to decode results is not known here, before a job is paid for that it could not read.

    Raises:
        HardwareError: If it does.
    """
    _decoders()


def decoded(body: Any, tags: Iterable[str], sent_as: Callable[[], Any]) -> Any:
    """The ``PrimitiveResult`` in the body of an answer, as the client decodes it.

    Args:
        body: What came.
        tags: Of the job: the result says which it had.
        sent_as: The program that was sent, or None if it is not known.

    Raises:
        HardwareError: If the client decodes in a way that is not known here.
        WrongResult: If it is the result of another job.
        Exception: Of many kinds, if it is no result.
    """
    if not body:
        raise WrongResult("got an empty answer, expected a result.")
    of_program, of_primitives = _decoders()
    result = of_program.decode(body)
    echoed = result.passthrough_data["post_processor"]
    _require_tag(echoed.get("options") or {}, tags)
    for number, item in enumerate(result):
        for name, array in item.items():
            if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
                raise WrongResult(f"item {number}, {name}: got {array.dtype} other than 0 and 1, expected bits.")
    # An Estimator's values, and the bits of randomised circuits, are computed here by what the result brings along.
    if echoed.get("twirling", True) and (sent := sent_as()) is not None:
        _require_as_sent(result, sent)
    return reduce(lambda data, each: each.decode(data) if each.is_applicable(data) else data, of_primitives, result)


def _decoders() -> tuple[Any, list[Any]]:
    """The client's decoder of programs, and those of primitives, which take what it returns."""
    decoders, known = [], False
    with suppress(ImportError, LookupError, TypeError):
        from ibm_quantum_schemas.common import CompressedTensorModel  # type: ignore[import-untyped]  # noqa: F401
        from qiskit_ibm_runtime.decoders.defaults import DEFAULT_DECODERS
        from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

        decoders = list(DEFAULT_DECODERS["executor"])
        roles = {getattr(each, "SEMANTIC_ROLE", None) for each in decoders[1:]}
        known = roles >= {"sampler_v2", "estimator_v2"} and all(issubclass(each, ResultDecoder) for each in decoders)
    if not known:
        raise HardwareError(
            f"qiskit-ibm-runtime: got version {version('qiskit-ibm-runtime')}, which decodes results in another way than "
            "0.51, so that jobs would be paid for and not read. None is sent with it, and those that were sent are kept; "
            "install one that is known here (pip install 'qiskit-ibm-runtime==0.51.*'), or a newer qiskit-torch-bridge."
        )
    return decoders[0], decoders[1:]


def _require_tag(options: Mapping[str, Any], tags: Iterable[str]) -> None:
    """Whether the options that a result brings along have the tag of its job, if both say which they have."""
    echoed = {tag for tag in (options.get("environment") or {}).get("job_tags") or () if tag.startswith(TAG)}
    expected = {tag for tag in tags if tag.startswith(TAG)}
    if echoed and expected and not echoed & expected:
        raise WrongResult(f"got the result of the job with the tag {min(echoed)}, expected {min(expected)}.")


def _require_as_sent(result: Any, sent: Any) -> None:
    """Whether a raw result has the arrays that the program asks for, and the recipe is the one that was sent."""
    got, expected = (_recipe(each.passthrough_data) for each in (result, sent))
    if got != expected or result._semantic_role != sent._semantic_role:
        raise WrongResult("got a recipe (passthrough_data) for the values that is not the one which was sent.")
    if len(result) != len(sent.items):
        raise WrongResult(f"got {len(result)} item(s), expected {len(sent.items)}.")
    for number, (item, asked) in enumerate(zip(result, sent.items, strict=True)):
        shapes = {register.name: (*asked.shape, sent.shots, register.size) for register in asked.circuit.cregs}
        for spec in asked.samplex.outputs().specs if hasattr(asked, "samplex") else ():
            if spec.name != "parameter_values":
                shapes[spec.name] = (*asked.shape, *spec.shape[1:])
        for name, shape in shapes.items():
            received = item[name].shape if name in item else "nothing"
            if received != shape:
                raise WrongResult(f"item {number}, {name}: got {received}, expected {shape}.")


def _recipe(passthrough: Any) -> Any:
    """Data that are passed through, without the options, which change no value and may be written in many ways."""
    processor = {name: value for name, value in passthrough["post_processor"].items() if name != "options"}
    return _as_lists({**passthrough, "post_processor": processor})


def _as_lists(tree: Any) -> Any:
    """Nested data with lists for arrays, which the client decodes in results only."""
    from ibm_quantum_schemas.common import CompressedTensorModel

    if isinstance(tree, Mapping) and tree.keys() == {"data", "shape", "dtype"}:
        tree = CompressedTensorModel(**tree).to_numpy()
    if isinstance(tree, Mapping):
        return {name: _as_lists(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_as_lists(value) for value in tree]
    return tree.tolist() if isinstance(tree, np.ndarray) else tree
