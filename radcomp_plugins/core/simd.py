"""Vectors of 16 floats for numba kernels.

LLVM's own vectoriser depends on what it can prove about array overlap and on how it feels about unrolling: small
changes of a loop made our kernels four times slower. With these types a kernel says what it means. A vector is one
LLVM value of type <16 x float>, which every target splits into the registers it has (one of AVX-512, two of AVX2, four
of SSE or NEON); it can be a local variable and live in registers across a loop.

Inside `numba.njit` functions: + - * / and comparisons between vectors, or a vector and a float, give vectors and
masks; `&` and `|` join masks. The functions below do the rest. Arithmetic assumes that no NaN or infinity occurs and
may be fused and reordered, the same way in every call.
"""

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import overload, register_model

LANES = 16
"""Floats in a vector."""

# Typed as anything: the decorator takes away the first argument, and type checkers do not see it.
intrinsic: Any = extending.intrinsic

_FLAGS = ("nnan", "ninf", "nsz", "arcp", "contract", "reassoc")
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="f32x16")


class _MaskType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="mask16")


vector = _VectorType()
mask = _MaskType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _MASK)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _as_vector(context: Any, builder: Any, kind: types.Type, value: Any) -> Any:
    """The value itself, or a float in all lanes."""
    if isinstance(kind, _VectorType):
        return value
    scalar = context.cast(builder, value, kind, types.float32)
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), lanes)


def _mixed(a: types.Type, b: types.Type) -> bool:
    """Whether this is a pair of vectors, or of a vector and a number."""
    kinds = (_VectorType, types.Float, types.Integer)
    return isinstance(a, kinds) and isinstance(b, kinds) and (isinstance(a, _VectorType) or isinstance(b, _VectorType))


def _arithmetic(op: Any, instruction: str) -> None:
    """Teach numba a binary operator that gives a vector."""

    @intrinsic
    def emit(typingctx, a, b):  # noqa: ANN001, ANN202
        def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
            left, right = (_as_vector(context, builder, k, v) for k, v in zip(signature.args, args, strict=True))
            return getattr(builder, instruction)(left, right, flags=_FLAGS)

        return vector(a, b), codegen

    @overload(op)
    def overloaded(a, b):  # noqa: ANN001, ANN202
        if _mixed(a, b):
            return lambda a, b: emit(a, b)
        return None


def _comparison(op: Any, symbol: str) -> None:
    """Teach numba a comparison that gives a mask."""

    @intrinsic
    def emit(typingctx, a, b):  # noqa: ANN001, ANN202
        def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
            left, right = (_as_vector(context, builder, k, v) for k, v in zip(signature.args, args, strict=True))
            return builder.fcmp_ordered(symbol, left, right, flags=("nnan", "ninf"))

        return mask(a, b), codegen

    @overload(op)
    def overloaded(a, b):  # noqa: ANN001, ANN202
        if _mixed(a, b):
            return lambda a, b: emit(a, b)
        return None


def _logic(op: Any, instruction: str) -> None:
    """Teach numba to join two masks."""

    @intrinsic
    def emit(typingctx, a, b):  # noqa: ANN001, ANN202
        return mask(a, b), lambda context, builder, signature, args: getattr(builder, instruction)(*args)

    @overload(op)
    def overloaded(a, b):  # noqa: ANN001, ANN202
        if isinstance(a, _MaskType) and isinstance(b, _MaskType):
            return lambda a, b: emit(a, b)
        return None


for _op, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_op, _instruction)
for _op, _symbol in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
    _comparison(_op, _symbol)
_logic(operator.and_, "and_")
_logic(operator.or_, "or_")


@intrinsic
def broadcast(typingctx, value):  # noqa: ANN001, ANN201
    """A float in all lanes."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return _as_vector(context, builder, signature.args[0], args[0])

    return vector(value), codegen


@intrinsic
def lane_numbers(typingctx):  # noqa: ANN001, ANN201
    """The vector 0, 1, ... 15."""
    return vector(), lambda context, builder, signature, args: ir.Constant(_VECTOR, [float(i) for i in range(LANES)])


def _lane_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    index = context.cast(builder, args[1], signature.args[1], types.intp)
    return builder.bitcast(builder.gep(array.data, [index]), _VECTOR.as_pointer())


@intrinsic
def load(typingctx, array, index):  # noqa: ANN001, ANN201
    """The 16 floats of a contiguous 1-D float32 array that begin at `index`; nothing is checked."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.load(_lane_pointer(context, builder, signature, args), align=4)

    return vector(array, index), codegen


@intrinsic
def load_bytes(typingctx, array, index):  # noqa: ANN001, ANN201
    """The 16 bytes of a contiguous 1-D uint8 array that begin at `index`, as floats 0 to 255; nothing is checked."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        array = context.make_array(signature.args[0])(context, builder, args[0])
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        pointer = builder.bitcast(builder.gep(array.data, [index]), ir.VectorType(ir.IntType(8), LANES).as_pointer())
        return builder.uitofp(builder.load(pointer, align=1), _VECTOR)

    return vector(array, index), codegen


@intrinsic
def broadcast_at(typingctx, array, index):  # noqa: ANN001, ANN201
    """One float of a contiguous 1-D float32 array in all lanes; nothing is checked."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        array = context.make_array(signature.args[0])(context, builder, args[0])
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        value = builder.load(builder.gep(array.data, [index]), align=4)
        return _as_vector(context, builder, types.float32, value)

    return vector(array, index), codegen


@intrinsic
def store(typingctx, array, index, value):  # noqa: ANN001, ANN201
    """Write a vector to a contiguous 1-D float32 array from `index` on; nothing is checked."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        builder.store(args[2], _lane_pointer(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.none(array, index, value), codegen


@intrinsic
def select(typingctx, condition, a, b):  # noqa: ANN001, ANN201
    """Lanes of `a` where the mask is set, of `b` elsewhere."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        left, right = (_as_vector(context, builder, signature.args[i], args[i]) for i in (1, 2))
        return builder.select(args[0], left, right)

    return vector(condition, a, b), codegen


@intrinsic
def swap_halves(typingctx, value):  # noqa: ANN001, ANN201
    """Lanes 8 to 15, then lanes 0 to 7."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        order = [(i + LANES // 2) % LANES for i in range(LANES)]
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), order)
        return builder.shuffle_vector(args[0], ir.Constant(_VECTOR, ir.Undefined), lanes)

    return vector(value), codegen


@intrinsic
def lane(typingctx, value, index):  # noqa: ANN001, ANN201
    """One lane as a float."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.extract_element(args[0], context.cast(builder, args[1], signature.args[1], types.int32))

    return types.float32(value, index), codegen


@intrinsic
def power_of_two(typingctx, value):  # noqa: ANN001, ANN201
    """2 to the power of each lane, which holds a whole number from -126 to 127."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        kind = ir.VectorType(ir.IntType(32), LANES)
        biased = builder.add(builder.fptosi(args[0], kind), ir.Constant(kind, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(kind, [23] * LANES)), _VECTOR)

    return vector(value), codegen


def _lanewise(name: str) -> Any:
    """An intrinsic of LLVM that takes two vectors."""

    @intrinsic
    def emit(typingctx, a, b):  # noqa: ANN001, ANN202
        def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
            values = [_as_vector(context, builder, k, v) for k, v in zip(signature.args, args, strict=True)]
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 2), f"llvm.{name}.v{LANES}f32"
            )
            return builder.call(function, values, fastmath=_FLAGS)

        return vector(a, b), codegen

    return emit


minimum = _lanewise("minnum")
maximum = _lanewise("maxnum")


def _unary(name: str) -> Any:
    """An intrinsic of LLVM that takes a vector."""

    @intrinsic
    def emit(typingctx, value):  # noqa: ANN001, ANN202
        def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.{name}.v{LANES}f32"
            )
            return builder.call(function, args)

        return vector(value), codegen

    return emit


absolute = _unary("fabs")
"""Magnitude of each lane."""
floor = _unary("floor")
"""Largest whole number not above each lane."""


def _reduction(name: str, has_start: bool) -> Any:
    """An intrinsic of LLVM that takes a vector to a float."""

    @intrinsic
    def emit(typingctx, value):  # noqa: ANN001, ANN202
        def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
            start = [ir.Constant(_FLOAT, 0.0)] if has_start else []
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(_FLOAT, [_FLOAT] * len(start) + [_VECTOR]),
                f"llvm.vector.reduce.{name}.v{LANES}f32",
            )
            return builder.call(function, [*start, args[0]], fastmath=_FLAGS)

        return types.float32(value), codegen

    return emit


total = _reduction("fadd", True)
"""Sum of the lanes, in a fixed order."""
largest = _reduction("fmax", False)
"""Largest lane."""


@intrinsic
def any_lane(typingctx, condition):  # noqa: ANN001, ANN201
    """Whether the mask is set in some lane."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(condition), codegen


@intrinsic
def lane_bits(typingctx, condition):  # noqa: ANN001, ANN201
    """The mask as an int64 whose bit i is lane i."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(64))

    return types.int64(condition), codegen


@intrinsic
def lowest_bit(typingctx, bits):  # noqa: ANN001, ANN201
    """Number of the lowest set bit of an int64 that is not 0."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        value = context.cast(builder, args[0], signature.args[0], types.int64)
        return builder.cttz(value, ir.Constant(ir.IntType(1), 1))

    return types.int64(bits), codegen


_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2; the first has few bits
_EXP_LIMIT = np.float32(87.0)


@njit(nogil=True, cache=True, inline="always")
def exp(x):  # noqa: ANN001, ANN201
    """e to the power of each lane, which is first clamped to -87 .. 87; relative error 2e-7.

    x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7.
    """
    x = maximum(minimum(x, _EXP_LIMIT), -_EXP_LIMIT)
    n = floor(x * _LOG2_E + np.float32(0.5))
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * np.float32(1 / 5040) + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return p * power_of_two(n)


@njit(nogil=True, cache=True, inline="always")
def sigmoid(x):  # noqa: ANN001, ANN201
    """1 / (1 + exp(-x)) of each lane."""
    return np.float32(1.0) / (np.float32(1.0) + exp(np.float32(0.0) - x))


_ONE = np.float32(1.0)


@njit(nogil=True, cache=True, inline="always")
def sine(x):
    """Sine for |x| <= 1.25: its Taylor polynomial of degree 11, error 3e-9. Of a vector or a float."""
    y = x * x
    p = y * np.float32(-1 / 39916800) + np.float32(1 / 362880)
    p = p * y + np.float32(-1 / 5040)
    p = p * y + np.float32(1 / 120)
    p = p * y + np.float32(-1 / 6)
    return x * (p * y + _ONE)


@njit(nogil=True, cache=True, inline="always")
def cosine(x):
    """Cosine for |x| <= 1.25: its Taylor polynomial of degree 12, error 3e-10. Of a vector or a float."""
    y = x * x
    p = y * np.float32(1 / 479001600) + np.float32(-1 / 3628800)
    p = p * y + np.float32(1 / 40320)
    p = p * y + np.float32(-1 / 720)
    p = p * y + np.float32(1 / 24)
    p = p * y + np.float32(-0.5)
    return p * y + _ONE
