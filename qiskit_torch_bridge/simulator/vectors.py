"""Vectors of eight numbers as a numba type, so that kernels say where the processor works on eight at once.

LLVM finds vector operations by itself only in loops whose arrays it can prove apart; a simulator that works in place
on pairs of amplitudes is not among them. These functions make the vector instructions explicit. They are compiled for
whatever the processor has (AVX-512, AVX2, NEON ...): LLVM splits a vector that is wider than a register.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

__all__ = ["WIDTH", "VectorType", "at_address", "get", "load", "moved", "pointer", "put", "splat", "store", "swapped"]

WIDTH = 8
_FLAGS = ("contract", "nsz")  # a product and a sum may become one fused operation; nothing may be reordered
_INDEX = ir.IntType(32)


class VectorType(types.Type):
    """The numba type of a vector of :data:`WIDTH` floats; supports ``+``, ``-`` and ``*``, element by element."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), WIDTH))


def _register(operation: Any, instruction: str) -> None:
    @infer_global(operation)
    class _Template(AbstractTemplate):
        def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(operation, VectorType, VectorType)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=_FLAGS)


for _operation, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _register(_operation, _instruction)


def _address(context: Any, builder: Any, kind: Any, memory: Any, index: Any) -> Any:
    if isinstance(kind, types.Array):
        memory = context.make_array(kind)(context, builder, memory).data
    return builder.gep(memory, [index])


@intrinsic
def pointer(typing_context: Any, array: Any) -> Any:
    """Where a contiguous array's elements are.

    Inner functions take pointers, because numba counts the references to every array that a function is given, with
    an atomic operation each: more time than a gate on a few qubits takes. A pointer does not keep the array alive.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def at_address(typing_context: Any, address: Any, like: Any) -> Any:
    """Where the elements at an address in memory are, of the type of the array ``like``, which is only asked for that."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(like.dtype)(types.int64, like), codegen


@intrinsic
def moved(typing_context: Any, memory: Any, index: Any) -> Any:
    """A pointer to an element behind a pointer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return memory(memory, types.intp), codegen


@intrinsic
def get(typing_context: Any, memory: Any, index: Any) -> Any:
    """An element behind a pointer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args))

    return memory.dtype(memory, types.intp), codegen


@intrinsic
def put(typing_context: Any, memory: Any, index: Any, value: Any) -> Any:
    """Writes an element behind a pointer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(memory, types.intp, memory.dtype), codegen


@intrinsic
def load(typing_context: Any, memory: Any, index: Any) -> Any:
    """The eight elements from ``index`` on, of a contiguous array or behind a pointer."""
    element = memory.dtype

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = context.get_value_type(sig.return_type)
        address = builder.bitcast(_address(context, builder, sig.args[0], *args), vector.as_pointer())
        return builder.load(address, align=element.bitwidth // 8)

    return VectorType(element)(memory, types.intp), codegen


@intrinsic
def store(typing_context: Any, memory: Any, index: Any, vector: Any) -> Any:
    """Writes eight elements from ``index`` on."""
    element = memory.dtype

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(address, args[2].type.as_pointer()), align=element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(memory, types.intp, vector), codegen


@intrinsic
def splat(typing_context: Any, number: Any) -> Any:
    """Eight times the same number."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        undefined = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(_INDEX, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INDEX, WIDTH), [0] * WIDTH))

    return VectorType(number)(number), codegen


@intrinsic
def swapped(typing_context: Any, vector: Any, stride: Any) -> Any:
    """The vector with element ``e`` from ``e ^ stride``; a stride of 1, 2 or 4."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one, two, four = (
            builder.shuffle_vector(
                args[0], args[0], ir.Constant(ir.VectorType(_INDEX, WIDTH), [e ^ by for e in range(WIDTH)])
            )
            for by in (1, 2, 4)
        )
        is_one = builder.icmp_signed("==", args[1], ir.Constant(args[1].type, 1))
        is_two = builder.icmp_signed("==", args[1], ir.Constant(args[1].type, 2))
        return builder.select(is_one, one, builder.select(is_two, two, four))

    return vector(vector, types.intp), codegen
