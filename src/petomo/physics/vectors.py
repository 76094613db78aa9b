"""Eight complex numbers of a row at once, for the loops that numba compiles.

The compiler by itself takes real and imaginary parts asunder and puts them together again, five shuffles for
the product of eight complex numbers; left in their places, they take one. Rows are contiguous and in single
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

#: complex numbers of a call
WIDTH = 8

_FAST = ("fast",)  # as `petomo.physics.jit`


def _lanes(numbers: Iterable[int]) -> ir.Constant:
    lanes = [ir.Constant(ir.IntType(32), number) for number in numbers]
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


_ALL = range(2 * WIDTH)
_REAL, _IMAGINARY = _lanes(i & ~1 for i in _ALL), _lanes(i | 1 for i in _ALL)
_EXCHANGED, _IN_TURN = _lanes(i ^ 1 for i in _ALL), _lanes(i + 2 * WIDTH * (i & 1) for i in _ALL)
_EVEN, _ODD = _lanes(_ALL[::2]), _lanes(_ALL[1::2])


def _place(context, builder, kind, row, index):
    """Address of `WIDTH` numbers of a row, from an index on."""
    if kind.layout != "C" or kind.dtype not in (types.complex64, types.float32):
        raise TypingError(f"{kind} is not a contiguous row in single precision")
    reals = WIDTH * (1 if kind.dtype == types.float32 else 2)
    start = builder.gep(context.make_array(kind)(context, builder, row).data, [index])
    return builder.bitcast(start, ir.VectorType(ir.FloatType(), reals).as_pointer())


def _load(builder, place):
    return builder.load(place, align=4)


def _pick(builder, vector, lanes):
    return builder.shuffle_vector(vector, vector, lanes)


def _operation(described: Callable) -> Callable[..., None]:
    """For compiled functions to call, with all arguments but the first."""
    return intrinsic(described)


@_operation
def multiply_at(_typing, row, factor, _index):
    """``row[i : i + WIDTH] *= factor[i : i + WIDTH]``, both complex; i is the last argument."""

    def generate(context, builder, signature, arguments):
        target, other = (
            _place(context, builder, signature.args[k], arguments[k], arguments[2]) for k in range(2)
        )
        a, b = _load(builder, target), _load(builder, other)
        straight = builder.fmul(a, _pick(builder, b, _REAL), flags=_FAST)
        crossed = builder.fmul(_pick(builder, a, _EXCHANGED), _pick(builder, b, _IMAGINARY), flags=_FAST)
        real, imaginary = (
            builder.fsub(straight, crossed, flags=_FAST),
            builder.fadd(straight, crossed, flags=_FAST),
        )
        builder.store(builder.shuffle_vector(real, imaginary, _IN_TURN), target, align=4)
        return context.get_dummy_value()

    return types.void(row, factor, types.intp), generate


@_operation
def subtract_imaginary_at(_typing, row, one, other, _index):
    """``row[i : i + WIDTH] -= (one * other).imag[i : i + WIDTH]``, of a real row."""

    def generate(context, builder, signature, arguments):
        target, *factors = (
            _place(context, builder, signature.args[k], arguments[k], arguments[3]) for k in range(3)
        )
        a, b = (_load(builder, place) for place in factors)
        crossed = builder.fmul(a, _pick(builder, b, _EXCHANGED), flags=_FAST)
        sums = builder.fadd(_pick(builder, crossed, _EVEN), _pick(builder, crossed, _ODD), flags=_FAST)
        builder.store(builder.fsub(_load(builder, target), sums, flags=_FAST), target, align=4)
        return context.get_dummy_value()

    return types.void(row, one, other, types.intp), generate
