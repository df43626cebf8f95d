"""Evaluates the program of a saved Core ML package with NumPy and JAX: a simulation, no device."""

import pathlib

import coremltools
import jax
import numpy as np
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil.types import nptype_from_builtin

_BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
}
_UNARY = {
    "exp": np.exp,
    "sqrt": np.sqrt,
    "square": np.square,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "identity": lambda x: x,
}
_TYPES = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32, "bool": np.bool_}


def _conv(x, weight, bias=None, strides=None, pad_type="valid", pad=None, dilations=None, groups=1):
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    ends = list(zip(pad[::2], pad[1::2], strict=True)) if pad_type == "custom" else pad_type.upper()
    precision = jax.lax.Precision.HIGHEST
    y = jax.lax.conv_general_dilated(
        x, weight, strides, ends, rhs_dilation=dilations, feature_group_count=groups,
        precision=precision,
    )  # fmt: skip
    y = np.asarray(y)
    return y if bias is None else y + np.reshape(bias, (1, -1) + (1,) * rank)


def _slice(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    none = [False] * x.ndim
    stride = stride or [1] * x.ndim
    where = []
    for axis in range(x.ndim):
        if (squeeze_mask or none)[axis]:
            where.append(begin[axis])
            continue
        first = None if (begin_mask or none)[axis] else begin[axis]
        last = None if (end_mask or none)[axis] else end[axis]
        where.append(slice(first, last, stride[axis]))
    return x[tuple(where)]


def _softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _matmul(x, y, transpose_x=False, transpose_y=False):
    x = np.swapaxes(x, -1, -2) if transpose_x else x
    return x @ (np.swapaxes(y, -1, -2) if transpose_y else y)


def _linear(x, weight, bias=None):
    y = x @ weight.T
    return y if bias is None else y + bias


def _dequantize(data, scale, offset=None):
    """Of `constexpr_blockwise_shift_scale`, with one block a channel."""
    values = data.astype(np.float32) if offset is None else data.astype(np.float32) - offset
    return (values * scale).astype(scale.dtype)


_OTHERS = {
    "conv": _conv,
    "slice_by_index": _slice,
    "softmax": _softmax,
    "matmul": _matmul,
    "linear": _linear,
    "constexpr_blockwise_shift_scale": _dequantize,
    "cast": lambda x, dtype: x.astype(_TYPES[dtype]),
    "transpose": lambda x, perm: np.transpose(x, perm),
    "reshape": lambda x, shape: np.reshape(x, shape),
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "concat": lambda values, axis, interleave: np.concatenate(values, axis),
    "tile": lambda x, reps: np.tile(x, reps),
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "rsqrt": lambda x, epsilon=0: 1 / np.sqrt(x + epsilon),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(axes), keepdims=keep_dims),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(tuple(axes), keepdims=keep_dims),
    "reduce_argmax": lambda x, axis, keep_dims: x.argmax(axis, keepdims=keep_dims),
}


def program_of(package):
    """Returns the function of a package, from pixels to its outputs in their order.

    float16 is computed in float16. An operation that is not in the tables is a KeyError.
    """
    spec = coremltools.utils.load_spec(str(package))
    weights = next(pathlib.Path(package).rglob("weights"))
    function = load(spec, spec.specificationVersion, str(weights)).functions["main"]
    operations = [x for x in function.operations if x.op_type != "const"]

    def run(pixels):
        known = {next(iter(function.inputs)): np.asarray(pixels, np.float32)}
        for operation in operations:
            inputs = operation.inputs.items()
            given = {name: _read(x, known) for name, x in inputs if x is not None}
            (output,) = operation.outputs
            dtype = nptype_from_builtin(output.dtype)  # of a scalar NumPy may make a wider one
            known[output.name] = np.asarray(_apply(operation.op_type, given), dtype)
        return tuple(known[output.name] for output in function.outputs)

    return run


def _read(value, known):
    if isinstance(value, tuple | list):
        return [_read(one, known) for one in value]
    if value.name in known:
        return known[value.name]
    found = value.val
    # Axes, sizes and switches as Python has them.
    small = isinstance(found, np.ndarray | np.generic) and found.ndim < 2
    return found.tolist() if small and found.dtype.kind in "ib" else found


def _apply(kind, given):
    if kind in _BINARY:
        return _BINARY[kind](given["x"], given["y"])
    return _UNARY[kind](given["x"]) if kind in _UNARY else _OTHERS[kind](**given)
