"""The interpolation window as vector code: one register holds a row of four complex voxels.

numba's own loops keep the sixteen rows of a window in memory; written as vector instructions they stay in registers.
The two intrinsics below emit them; :mod:`cloudem.kernels.slices` has the same in NumPy.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cloudem.kernels.slices import POLYNOMIALS, WINDOW

F32 = ir.FloatType()
V4 = ir.VectorType(F32, 4)
V8 = ir.VectorType(F32, 8)
FAST = ("fast",)


def _constant(values: Any) -> ir.Constant:
    return ir.Constant(ir.VectorType(F32, len(values)), [ir.Constant(F32, float(v)) for v in values])


def _splat(builder: Any, value: Any, width: int) -> Any:
    vector = ir.VectorType(F32, width)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), _mask([0] * width))


def _mask(indices: list[int]) -> ir.Constant:
    vector = ir.VectorType(ir.IntType(32), len(indices))
    return ir.Constant(vector, [ir.Constant(ir.IntType(32), i) for i in indices])


def _mul(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b, flags=FAST)


def _madd(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(_mul(builder, a, b), c, flags=FAST)


def _weights(builder: Any, first: Any, second: Any, derivative: bool) -> tuple[Any, Any]:
    """Return the four weights (or their derivatives) for two fractions, by Horner's rule in one register."""
    fractions = (_splat(builder, f, WINDOW) for f in (first, second))
    f = builder.shuffle_vector(*fractions, _mask([0, 1, 2, 3, 4, 5, 6, 7]))
    table = POLYNOMIALS.T
    if derivative:
        table = table[1:] * [[d] for d in range(1, len(table))]
    value = _constant([*table[-1], *table[-1]])
    for row in table[-2::-1]:
        value = _madd(builder, value, f, _constant([*row, *row]))
    return tuple(builder.shuffle_vector(value, value, _mask([o, o + 1, o + 2, o + 3])) for o in (0, 4))


def _twice(builder: Any, four: Any) -> Any:
    """Repeat each of four weights, for the real and the imaginary part of a voxel."""
    return builder.shuffle_vector(four, four, _mask([0, 0, 1, 1, 2, 2, 3, 3]))


def _lane(builder: Any, four: Any, i: int, width: int) -> Any:
    return builder.shuffle_vector(four, four, _mask([i] * width))


def _sum_pairs(builder: Any, eight: Any) -> tuple[Any, Any]:
    """Add the four complex numbers of a vector; return real and imaginary part."""
    halves = [builder.shuffle_vector(eight, eight, _mask([o, o + 1, o + 2, o + 3])) for o in (0, 4)]
    four = builder.fadd(*halves, flags=FAST)
    pairs = [builder.shuffle_vector(four, four, _mask([o, o + 1])) for o in (0, 2)]
    two = builder.fadd(*pairs, flags=FAST)
    return tuple(builder.extract_element(two, ir.Constant(ir.IntType(32), i)) for i in (0, 1))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, vector: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


def _advance(builder: Any, offset: Any, stride: Any) -> Any:
    return builder.add(offset, stride)


@intrinsic
def gather(typing: Any, volume: Any, offset: Any, row: Any, plane: Any, fx: Any, fy: Any, fz: Any) -> Any:
    """Interpolate: (flat float32 volume, offset of the window, row and plane strides, fractions) -> 8 floats.

    The result is (value, ∂x, ∂y, ∂z), each as real and imaginary part. Offsets and strides count floats.
    """
    result = types.UniTuple(types.float32, 8)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, start, row_stride, plane_stride, x, y, z = args
        wx4, wy = _weights(builder, x, y, False)
        dx4, dy = _weights(builder, x, y, True)
        wz, _ = _weights(builder, z, z, False)
        dz, _ = _weights(builder, z, z, True)
        zero = _constant([0.0] * 8)
        total, total_y, total_z = zero, zero, zero
        for k in range(WINDOW):
            offset_row = start
            value, slope = zero, zero
            for j in range(WINDOW):
                pointer = _pointer(context, builder, signature.args[0], array, offset_row, V8)
                voxels = builder.load(pointer, align=4)
                value = _madd(builder, voxels, _lane(builder, wy, j, 8), value)
                slope = _madd(builder, voxels, _lane(builder, dy, j, 8), slope)
                offset_row = _advance(builder, offset_row, row_stride)
            total = _madd(builder, value, _lane(builder, wz, k, 8), total)
            total_y = _madd(builder, slope, _lane(builder, wz, k, 8), total_y)
            total_z = _madd(builder, value, _lane(builder, dz, k, 8), total_z)
            start = _advance(builder, start, plane_stride)
        wx, dx = _twice(builder, wx4), _twice(builder, dx4)
        products = [(total, wx), (total, dx), (total_y, wx), (total_z, wx)]
        parts = [part for a, b in products for part in _sum_pairs(builder, _mul(builder, a, b))]
        return cgutils.pack_array(builder, parts)

    return result(volume, types.intp, types.intp, types.intp, types.float32, types.float32, types.float32), codegen


@intrinsic
def scatter(
    typing: Any,
    sums: Any,
    weights: Any,
    offset: Any,
    row: Any,
    plane: Any,
    fx: Any,
    fy: Any,
    fz: Any,
    re: Any,
    im: Any,
    w: Any,
) -> Any:
    """Add one sample to flat accumulators: the adjoint of :func:`gather`.

    Offset and strides count voxels: ``sums`` has two floats for each, ``weights`` one.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, weight_array, start, row_stride, plane_stride, x, y, z, real, imaginary, weight = args
        wx, wy = _weights(builder, x, y, False)
        wz, _ = _weights(builder, z, z, False)
        index = [ir.Constant(ir.IntType(32), i) for i in (0, 1)]
        pair = builder.insert_element(ir.Constant(V4, ir.Undefined), real, index[0])
        pair = builder.insert_element(pair, imaginary, index[1])
        values = builder.shuffle_vector(pair, pair, _mask([0, 1] * WINDOW))
        values = _mul(builder, values, _twice(builder, wx))
        row_weights = _mul(builder, wx, _splat(builder, weight, WINDOW))
        for k in range(WINDOW):
            offset_row = start
            for j in range(WINDOW):
                both = _mul(builder, _lane(builder, wz, k, 8), _lane(builder, wy, j, 8))
                four = builder.shuffle_vector(both, both, _mask([0, 1, 2, 3]))
                two = builder.shl(offset_row, ir.Constant(offset_row.type, 1))
                pointer = _pointer(context, builder, signature.args[0], array, two, V8)
                builder.store(_madd(builder, values, both, builder.load(pointer, align=4)), pointer, align=4)
                pointer = _pointer(context, builder, signature.args[1], weight_array, offset_row, V4)
                builder.store(_madd(builder, row_weights, four, builder.load(pointer, align=4)), pointer, align=4)
                offset_row = _advance(builder, offset_row, row_stride)
            start = _advance(builder, start, plane_stride)
        return context.get_dummy_value()

    f, n = types.float32, types.intp
    return types.void(sums, weights, n, n, n, f, f, f, f, f, f), codegen
