"""From a jaxpr to a graph of ONNX: a table of operators, of which the models need some thirty.

Convolutions are channels first in ONNX, and everything here is channels last: they stand between
two transpositions, which runtimes push out of the way.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend.core import Literal
from jaxtyping import Array

from mobilevitv2_jax.errors import ExportError
from mobilevitv2_jax.export.program import Program, resize_plain

OPSET = 18
"""The first in which Resize takes the axes it is to resize; all later ones have these operators."""

IR_VERSION = 10

_RESIZE = "resize_bilinear_half_pixel"

_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # to channels first, and back to channels last

_DTYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9}  # TensorProto.DataType


def resize(x: Array, size: tuple[int, ...]) -> Array:
    """Resizes maps: one operator of ONNX."""

    def resize_bilinear_half_pixel(x: Array) -> Array:
        return resize_plain(x, size)

    return jax.jit(resize_bilinear_half_pixel)(x)


def model_of(program: Program) -> Any:
    """Returns the `onnx.ModelProto` of a program.

    Raises:
        ExportError: for an operation that is not in the table.
    """
    import onnx
    from onnx import helper

    sides = ["batch" if program.shape[0] is None else str(program.shape[0])]
    shape = jax_export.symbolic_shape(", ".join([*sides, *map(str, program.shape[1:])]))
    traced = jax.make_jaxpr(lambda images: program.run(program.weights, images))(
        jax.ShapeDtypeStruct(shape, program.dtype)
    )
    graph = _Graph()
    found = graph.inline(traced.jaxpr, traced.consts, [program.input])
    for name, result in zip(program.outputs, found, strict=True):
        graph.add("Identity", [result], output=name)
    made = helper.make_graph(
        graph.nodes,
        "mobilevitv2",
        [_value(program.input, shape, program.dtype)],
        [
            _value(name, variable.aval.shape, str(variable.aval.dtype))
            for name, variable in zip(program.outputs, traced.jaxpr.outvars, strict=True)
        ],
        graph.initializers(),
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="mobilevitv2_jax"
    )
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )


def _value(name: str, shape: Sequence[Any], dtype: str) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, _DTYPES[dtype], [_side(x) for x in shape])


def _side(side: Any) -> int | str:
    return side if isinstance(side, int) else str(side)


class _Graph:
    """Nodes under construction. Values are names of results, or arrays where they are constant."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._constants: dict[tuple[Any, ...], tuple[str, np.ndarray]] = {}
        self._numbers = itertools.count()
        self._convolutions: dict[str, Any] = {}  # by the result of the transposition behind it

    def add(
        self,
        kind: str,
        inputs: Sequence[Any],
        output: str | None = None,
        count: int = 1,
        **more: Any,
    ) -> Any:
        """Adds a node and returns the name of its result, or of its `count` results."""
        from onnx import helper

        names = [output or f"{kind.lower()}_{next(self._numbers)}" for _ in range(count)]
        self.nodes.append(helper.make_node(kind, [self.name(x) for x in inputs], names, **more))
        return names[0] if count == 1 else names

    def name(self, value: Any) -> str:
        """Returns the name of a value; a constant becomes an initializer, equal ones the same."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        key = (array.shape, array.dtype.str, array.tobytes())
        if key not in self._constants:
            self._constants[key] = (f"constant_{len(self._constants)}", array)
        return self._constants[key][0]

    def initializers(self) -> list[Any]:
        from onnx import numpy_helper

        return [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in self._constants.values()
        ]

    def inline(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Adds the operations of a jaxpr, and returns its results."""
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= zip(jaxpr.invars, inputs, strict=True)
        uses = Counter(
            x for equation in jaxpr.eqns for x in equation.invars if not isinstance(x, Literal)
        )

        def read(x: Any) -> Any:
            return np.asarray(x.val) if isinstance(x, Literal) else known[x]

        for equation in jaxpr.eqns:
            values = [read(x) for x in equation.invars]
            if all(not isinstance(x, str) for x in values) and _is_static(equation):
                results = equation.primitive.bind(*map(jnp.asarray, values), **equation.params)
                results = results if equation.primitive.multiple_results else [results]
            else:
                single = all(uses[x] == 1 for x in equation.invars if not isinstance(x, Literal))
                results = self._translate(equation, values, single)
            known |= zip(equation.outvars, results, strict=True)
        return [read(x) for x in jaxpr.outvars]

    def _translate(self, equation: Any, values: list[Any], single: bool) -> list[Any]:
        kind, inner = equation.primitive.name, _inner(equation)
        if inner is not None:
            if equation.params.get("name") == _RESIZE:
                return [_resize(self, equation, values[0])]
            return self.inline(inner.jaxpr, inner.consts, values)
        if kind == "add" and single and (result := self._with_bias(values)):
            return [result]
        if kind not in _OPERATORS:
            raise ExportError(f"--to=onnx has no form of {kind}: {equation}")
        found = _OPERATORS[kind](self, equation, *values)
        return found if isinstance(found, list) else [found]

    def convolution(self, name: str, node: Any) -> None:
        """Remembers the convolution whose result, channels last, has this name."""
        self._convolutions[name] = node

    def _with_bias(self, values: list[Any]) -> str | None:
        """Lets a convolution add a constant of every channel, in place of a node of its own."""
        result, bias = sorted(values, key=lambda x: not isinstance(x, str))
        if isinstance(bias, str) or np.ndim(bias) != 4 or np.shape(bias)[:3] != (1, 1, 1):
            return None
        node = self._convolutions.pop(result, None)
        if node is None:
            return None
        node.input.append(self.name(np.reshape(bias, -1)))
        return result


def _is_static(equation: Any) -> bool:
    sides = itertools.chain(*(x.aval.shape for x in equation.outvars))
    return all(isinstance(side, int) for side in sides)


def _inner(equation: Any) -> Any:
    for name in ("jaxpr", "call_jaxpr"):
        if name in equation.params:
            return equation.params[name]
    return None


# ---- Operators -------------------------------------------------------------------------------

_SYMBOLIC = -1  # there is one side at most that is not known: the batch, or a multiple of it


def _shape(sides: Sequence[Any]) -> np.ndarray:
    return np.array([side if isinstance(side, int) else _SYMBOLIC for side in sides], np.int64)


def _same(kind: str) -> Callable[..., str]:
    return lambda graph, equation, *values: graph.add(kind, values)


def _axes(kind: str) -> Callable[..., str]:
    def reduce(graph: _Graph, equation: Any, x: Any) -> str:
        return graph.add(kind, [x, np.array(equation.params["axes"], np.int64)], keepdims=0)

    return reduce


def _transposed(graph: _Graph, x: Any, order: Sequence[int]) -> Any:
    if not isinstance(x, str):
        return np.transpose(x, order)
    if tuple(order) == tuple(range(len(order))):
        return x
    return graph.add("Transpose", [x], perm=list(order))


def _reshaped(graph: _Graph, x: Any, sides: Sequence[Any]) -> Any:
    shape = _shape(sides)
    return graph.add("Reshape", [x, shape]) if isinstance(x, str) else np.reshape(x, shape)


def _convolve(graph: _Graph, equation: Any, x: Any, kernel: Any) -> str:
    params = equation.params
    (top, bottom), (left, right) = params["padding"]
    first = graph.add(
        "Conv",
        [_transposed(graph, x, _FIRST), np.transpose(kernel, (3, 2, 0, 1))],
        group=params["feature_group_count"],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[top, left, bottom, right],
    )
    node = graph.nodes[-1]
    last = _transposed(graph, first, _LAST)
    graph.convolution(last, node)
    return last


def _dot(graph: _Graph, equation: Any, left: Any, right: Any) -> Any:
    """Multiplies by way of matrices: free axes of the left, then those of the right."""
    ((of_left, of_right), batch) = equation.params["dimension_numbers"]
    if any(batch):
        raise ExportError(f"--to=onnx has no form of a batched product: {equation}")
    shapes = [x.aval.shape for x in equation.invars]
    free = [
        [axis for axis in range(len(shape)) if axis not in taken]
        for shape, taken in zip(shapes, (of_left, of_right), strict=True)
    ]
    length = math.prod(shapes[0][axis] for axis in of_left)
    left = _transposed(graph, left, [*free[0], *of_left])
    right = _transposed(graph, right, [*of_right, *free[1]])
    if len(shapes[0]) != 2:
        left = _reshaped(graph, left, (_product(shapes[0], free[0]), length))
    if len(shapes[1]) != 2:
        right = _reshaped(graph, right, (length, _product(shapes[1], free[1])))
    product = graph.add("MatMul", [left, right])
    out = equation.outvars[0].aval.shape
    return product if len(out) == 2 else _reshaped(graph, product, out)


def _product(shape: Sequence[Any], axes: Sequence[int]) -> Any:
    return math.prod(shape[axis] for axis in axes)


def _broadcast(graph: _Graph, equation: Any, x: Any) -> Any:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    sides = equation.invars[0].aval.shape
    between = [1] * len(shape)
    for axis, side in zip(axes, sides, strict=True):
        between[axis] = side
    x = _reshaped(graph, x, between)
    if all(_side(a) == _side(b) for a, b in zip(between, shape, strict=True)):
        return x
    # 1 leaves a side as it is: also the one that is not known.
    wanted = [side if isinstance(side, int) else 1 for side in shape]
    return graph.add("Expand", [x, np.array(wanted, np.int64)])


def _maximum(graph: _Graph, equation: Any, left: Any, right: Any) -> str:
    for x, other in ((left, right), (right, left)):
        if not isinstance(other, str) and not np.any(other):
            return graph.add("Relu", [x])
    return graph.add("Max", [left, right])


def _split(graph: _Graph, equation: Any, x: Any) -> list[str]:
    sizes = np.array(equation.params["sizes"], np.int64)
    return graph.add("Split", [x, sizes], count=len(sizes), axis=equation.params["axis"])


def _top_k(graph: _Graph, equation: Any, x: Any) -> list[str]:
    k, axis = equation.params["k"], equation.params["axis"]
    values, indices = graph.add("TopK", [x, np.array([k], np.int64)], count=2, axis=axis)
    return [values, graph.add("Cast", [indices], to=_DTYPES["int32"])]


def _argmax(graph: _Graph, equation: Any, x: Any) -> str:
    found = graph.add("ArgMax", [x], axis=equation.params["axes"][0], keepdims=0)
    return graph.add("Cast", [found], to=_DTYPES["int32"])


def _slice(graph: _Graph, equation: Any, x: Any) -> str:
    params, rank = equation.params, len(equation.invars[0].aval.shape)
    # Beyond the end is the end: also of the side that is not known.
    ends = [side if isinstance(side, int) else 2**31 for side in params["limit_indices"]]
    steps = params["strides"] or [1] * rank
    bounds = (params["start_indices"], ends, range(rank), steps)
    return graph.add("Slice", [x, *(np.array(list(values), np.int64) for values in bounds)])


def _pad(graph: _Graph, equation: Any, x: Any, value: Any) -> str:
    config = equation.params["padding_config"]
    if any(between for _, _, between in config):
        raise ExportError(f"--to=onnx has no form of padding between elements: {equation}")
    pads = [low for low, _, _ in config] + [high for _, high, _ in config]
    return graph.add("Pad", [x, np.array(pads, np.int64), value])


def _resize(graph: _Graph, equation: Any, x: Any) -> str:
    size = np.array(equation.outvars[0].aval.shape[1:3], np.int64)
    first = graph.add(
        "Resize",
        [_transposed(graph, x, _FIRST), "", "", size],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
        axes=[2, 3],
    )
    return _transposed(graph, first, _LAST)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": _same("Add"),
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda graph, equation, *values: graph.add(
        "Concat", values, axis=equation.params["dimension"]
    ),
    "conv_general_dilated": _convolve,
    "convert_element_type": lambda graph, equation, x: graph.add(
        "Cast", [x], to=_DTYPES[str(equation.params["new_dtype"])]
    ),
    "copy": _same("Identity"),
    "div": _same("Div"),
    "dot_general": _dot,
    "erf": _same("Erf"),
    "erfc": lambda graph, equation, x: graph.add("Sub", [np.float32(1), graph.add("Erf", [x])]),
    "exp": _same("Exp"),
    "integer_pow": lambda graph, equation, x: graph.add(
        "Pow", [x, np.float32(equation.params["y"])]
    ),
    "logistic": _same("Sigmoid"),
    "max": _maximum,
    "min": _same("Min"),
    "mul": _same("Mul"),
    "neg": _same("Neg"),
    "pad": _pad,
    "reduce_max": _axes("ReduceMax"),
    "reduce_sum": _axes("ReduceSum"),
    "reshape": lambda graph, equation, x: _reshaped(graph, x, equation.params["new_sizes"]),
    "rsqrt": lambda graph, equation, x: graph.add("Reciprocal", [graph.add("Sqrt", [x])]),
    "slice": _slice,
    "split": _split,
    "square": lambda graph, equation, x: graph.add("Mul", [x, x]),
    "squeeze": lambda graph, equation, x: _reshaped(graph, x, equation.outvars[0].aval.shape),
    "stop_gradient": lambda graph, equation, x: x,
    "sub": _same("Sub"),
    "tanh": _same("Tanh"),
    "top_k": _top_k,
    "transpose": lambda graph, equation, x: _transposed(graph, x, equation.params["permutation"]),
}
