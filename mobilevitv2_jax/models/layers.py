"""Convolutions and normalisations of MobileViTV2, channels last.

All padding is symmetric, as in PyTorch; "SAME" pads otherwise at stride 2. Parameters have
the type `param_dtype`, arithmetic the type `dtype`; statistics are taken in float32 or better.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from mobilevitv2_jax.models.config import MobileViTV2Config, make_divisible
from mobilevitv2_jax.models.initializers import constant, normal, uniform
from mobilevitv2_jax.models.normalization import (
    Activation,
    apply,
    normalize,
    statistics_dtype,
)
from mobilevitv2_jax.models.platform import by_platform

Features = Float[Array, "batch height width channels"]

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1
"""Weight of the new batch in the running statistics: PyTorch's convention, 0.9 in Flax's."""

_ACTIVATIONS: dict[str, Callable] = {
    "swish": jax.nn.silu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "hardswish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}


def activation(config: MobileViTV2Config) -> Callable[[Array], Array]:
    """Returns the function that `config.hidden_act` names, or is."""
    act = config.hidden_act
    return act if callable(act) else _ACTIVATIONS[act]


def pointwise(
    x: Float[Array, "... inputs"], kernel: Float[Array, "inputs outputs"], form: str
) -> Array:
    """Applies `kernel` to the last axis: a 1x1 convolution.

    Args:
        x: the input. One without four axes is always multiplied.
        kernel: of one pixel.
        form: "product" (of two matrices), "convolution" (TPU keeps the layout of the depthwise
            convolutions before and after it, and copies nothing), or "auto", resolved for the
            platform that the program is compiled for.
    """

    def product(x: Array, kernel: Array) -> Array:
        # Flattened to two dimensions, because the gradient of a product of higher rank makes
        # XLA:CPU transpose the activations together with everything fused into them.
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])

    def convolution(x: Array, kernel: Array) -> Array:
        return convolve(x, kernel[None, None], 1, 1)

    if x.ndim == 4 and form == "auto":
        return by_platform(x, kernel, tpu=convolution, default=product)
    return (convolution if x.ndim == 4 and form == "convolution" else product)(x, kernel)


def convolve(x: Features, kernel: Array, stride: int, dilation: int, groups: int = 1) -> Features:
    """Convolves with symmetric zero padding; `kernel` is [rows, columns, inputs, outputs]."""
    padding = [((size - 1) // 2 * dilation,) * 2 for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def trim(kernel: Array, height: int, width: int, dilation: int) -> Array:
    """Leaves out the taps of a dilated kernel that can see nothing but padding.

    The head's atrous rates exceed small feature maps: the kernel is then a single tap, and
    XLA:CPU takes a hundred times longer to convolve with its eight zeros. A map whose sides are
    open in an exported program has the whole kernel.
    """
    if not (isinstance(height, int) and isinstance(width, int)):
        return kernel
    middle = (kernel.shape[0] - 1) // 2
    rows, columns = (min(middle, (size - 1) // dilation) for size in (height, width))
    return kernel[middle - rows : middle + rows + 1, middle - columns : middle + columns + 1]


def _shifts(x: Features, size: int, stride: int, dilation: int) -> list[Features]:
    """Returns what each tap of a size x size kernel sees, row by row."""
    padding = (size - 1) // 2 * dilation
    batch, height, width, channels = x.shape
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def shifted(row: int, column: int) -> Features:
        top, left = row * dilation, column * dilation
        bottom, right = top + (rows - 1) * stride + 1, left + (columns - 1) * stride + 1
        return lax.slice(
            padded, (0, top, left, 0), (batch, bottom, right, channels), (1, stride, stride, 1)
        )

    return [shifted(row, column) for row in range(size) for column in range(size)]


def _multiply_add(x: Features, kernel: Array, stride: int, dilation: int) -> Features:
    size, _, _, channels = kernel.shape
    taps = kernel.reshape(size * size, channels)
    shifts = _shifts(x, size, stride, dilation)
    return sum(shift * tap for shift, tap in zip(shifts, taps, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_shifts(x: Features, kernel: Array, stride: int, dilation: int) -> Features:
    return _multiply_add(x, kernel, stride, dilation)


def _shifts_forward(
    x: Features, kernel: Array, stride: int, dilation: int
) -> tuple[Features, tuple[Features, Array]]:
    # The barriers are there for XLA:CPU, which would work out what goes in and what comes out anew
    # for each of their users: see `training.program.compiler_options`.
    x = lax.optimization_barrier(x)
    y = lax.optimization_barrier(_multiply_add(x, kernel, stride, dilation))
    return y, (x, kernel)


def _shifts_backward(
    stride: int, dilation: int, residuals: tuple[Features, Array], gradient: Features
) -> tuple[Features, Array]:
    """What differentiation gives by itself, in a form that XLA:CPU runs 2 to 5 times faster.

    By itself it pads and adds once per tap, and reads input and gradient anew for each tap of
    the kernel's gradient: these two were a third of a training step.
    """
    x, kernel = residuals
    gradient = lax.optimization_barrier(gradient)
    # The transpose of a convolution is one with the kernel turned round, over a gradient that is
    # 0 at the pixels that the stride left out.
    left_over = [(size - 1) % stride for size in x.shape[1:3]]
    config = [(0, 0, 0), *((0, high, stride - 1) for high in left_over), (0, 0, 0)]
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), config)
    to_input = _multiply_add(spread, kernel[::-1, ::-1], 1, dilation)
    # One reduction with an operand for each tap is one pass over the arrays. It leaves rows, so
    # that it runs on all cores; the barrier keeps XLA from joining it with the sum over them.
    dtype = statistics_dtype(gradient)
    products = [
        shift.astype(dtype) * gradient.astype(dtype)
        for shift in _shifts(x, kernel.shape[0], stride, dilation)
    ]
    rows = lax.reduce(
        products,
        [jnp.zeros((), dtype)] * len(products),
        lambda left, right: [a + b for a, b in zip(left, right, strict=True)],
        dimensions=(2,),
    )
    sums = jnp.stack(lax.optimization_barrier(rows)).sum((1, 2))
    return to_input, sums.reshape(kernel.shape).astype(kernel.dtype)


_depthwise_shifts.defvjp(_shifts_forward, _shifts_backward)


def depthwise(
    x: Features,
    kernel: Float[Array, "size size 1 channels"],
    stride: int,
    dilation: int,
    form: str,
    gradients: str = "written",
) -> Features:
    """Convolves each channel with its own kernel.

    Args:
        x: the input.
        kernel: one kernel per channel.
        stride: of the output, in pixels.
        dilation: of the kernel.
        form: "shifts" (XLA:CPU runs its own depthwise convolution 14 to 60 times slower than
            shifted multiply-adds, which fuse), "convolution" (what TPU and GPU do well), or
            "auto", resolved for the platform that the program is compiled for.
        gradients: of the shifts: "written" here, or "derived" by differentiation.
    """
    functions: dict[str, Callable] = {"written": _depthwise_shifts, "derived": _multiply_add}

    def shifts(x: Features, kernel: Array) -> Features:
        return functions[gradients](x, kernel, stride, dilation)

    def convolution(x: Features, kernel: Array) -> Features:
        return convolve(x, kernel, stride, dilation, groups=x.shape[-1])

    if form == "auto":
        return by_platform(x, kernel, cpu=shifts, default=convolution)
    return (shifts if form == "shifts" else convolution)(x, kernel)


class Pointwise(nnx.Module):
    """A 1x1 convolution, or the same linear map over any last axis: kernel [inputs, outputs]."""

    def __init__(
        self,
        config: MobileViTV2Config,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (inputs, outputs)
        self.dtype = jnp.dtype(config.dtype)
        if config.initialization == "huggingface":
            self.kernel = nnx.Param(normal(config, rngs.params(), shape))
            values = constant(0, outputs, jnp.dtype(config.param_dtype))
        else:
            # PyTorch's default, which ml-cvnets' own initialisation never replaces: its
            # `reset_parameters` hands over a generator that `initialize_weights` passes by.
            limit = 1 / math.sqrt(inputs)
            self.kernel = nnx.Param(uniform(config, rngs.params(), shape, limit))
            values = uniform(config, rngs.params(), (outputs,), limit)
        self.bias = nnx.Param(values) if bias else None
        self.form = config.pointwise

    def __call__(
        self, x: Float[Array, "... inputs"], outputs: slice = slice(None)
    ) -> Float[Array, "... outputs"]:
        """Applies the map, or the part of it that gives some of the outputs, in `dtype`."""
        y = pointwise(x.astype(self.dtype), self.kernel[:, outputs].astype(self.dtype), self.form)
        return y if self.bias is None else y + self.bias[outputs].astype(self.dtype)


class Convolution(nnx.Module):
    """A k x k convolution without bias: kernel [size, size, inputs / groups, outputs]."""

    def __init__(
        self,
        config: MobileViTV2Config,
        inputs: int,
        outputs: int,
        *,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        per_channel: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (kernel_size, kernel_size, 1 if per_channel else inputs, outputs)
        if config.initialization == "huggingface":
            self.kernel = nnx.Param(normal(config, rngs.params(), shape))
        else:
            self.kernel = nnx.Param(
                uniform(config, rngs.params(), shape, 1 / math.sqrt(math.prod(shape[:3])))
            )
        self.dtype = jnp.dtype(config.dtype)
        self.stride = stride
        self.dilation = dilation
        self.depthwise = config.depthwise if per_channel else None
        self.gradients = config.gradients

    def __call__(self, x: Features) -> Features:
        """Convolves in `dtype`; the output has ceil(size / stride) pixels a side."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.depthwise is not None:
            form = self.depthwise
            return depthwise(x, kernel, self.stride, self.dilation, form, self.gradients)
        if self.dilation > 1:
            kernel = trim(kernel, x.shape[1], x.shape[2], self.dilation)
            if kernel.shape[:2] == (1, 1) and self.stride == 1:
                return pointwise(x, kernel[0, 0], "product")
        return convolve(x, kernel, self.stride, self.dilation)


class BatchNorm(nnx.Module):
    """Normalises each channel over the batch and all positions, as PyTorch does.

    Under `jit` over a mesh the batch is the global one, whatever the number of devices. With
    `batch_norm_group_size` the statistics are those of groups of consecutive images; the
    running ones then move towards the mean over the groups. The running variance is fed with
    the unbiased batch variance, PyTorch's convention and not Flax's.
    """

    def __init__(self, config: MobileViTV2Config, channels: int, *, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.param_dtype)
        # Hugging Face draws this scale too, which all but mutes the attention branches.
        huggingface = config.initialization == "huggingface"
        self.scale = nnx.Param(
            normal(config, rngs.params(), (channels,))
            if huggingface
            else constant(1, channels, dtype)
        )
        self.bias = nnx.Param(constant(0, channels, dtype))
        statistics = jnp.promote_types(dtype, jnp.float32)
        self.mean = nnx.BatchStat(constant(0, channels, statistics))
        self.variance = nnx.BatchStat(constant(1, channels, statistics))
        self.group_size = config.batch_norm_group_size
        self.gradients = config.gradients
        self.use_running_average = False

    def __call__(self, x: Features, act: Activation = None) -> Features:
        """Normalises and activates; in training mode also moves the running statistics.

        Raises:
            ValueError: in training mode, if the group size does not divide the batch.
        """
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            moments = self.mean[...], self.variance[...]
            return apply(x, moments, scale, bias, BATCH_NORM_EPSILON, act)
        y, mean, variance = normalize(
            self._grouped(x),
            scale,
            bias,
            per_channel=True,
            epsilon=BATCH_NORM_EPSILON,
            act=act,
            gradients=self.gradients,
        )
        self._update(mean, variance, count=math.prod(y.shape[1:4]))
        return y.reshape(x.shape)

    def _grouped(self, x: Features) -> Float[Array, "groups group height width channels"]:
        images = x.shape[0]
        size = self.group_size or images
        if images % size:
            raise ValueError(
                f"batch_norm_group_size must divide the batch of {images} images, got {size}"
            )
        return x.reshape(images // size, size, *x.shape[1:])

    def _update(self, mean: Array, variance: Array, count: int) -> None:
        unbiased = variance * (count / max(count - 1, 1))
        for running, new in ((self.mean, mean), (self.variance, unbiased)):
            new = new.mean((0, 1, 2, 3)).astype(running[...].dtype)
            running.set_value((1 - BATCH_NORM_MOMENTUM) * running[...] + BATCH_NORM_MOMENTUM * new)


class GroupNorm(nnx.Module):
    """Normalises a sample over all its positions and channels: GroupNorm with one group.

    Source: `LayerNorm2D_NCHW` of ml-cvnets `cvnets/layers/normalization/layer_norm.py`. It is
    not a LayerNorm over the channels of each pixel.
    """

    def __init__(self, config: MobileViTV2Config, channels: int) -> None:
        dtype = jnp.dtype(config.param_dtype)
        self.scale = nnx.Param(constant(1, channels, dtype))
        self.bias = nnx.Param(constant(0, channels, dtype))
        self.epsilon = config.layer_norm_eps
        self.gradients = config.gradients

    def __call__(self, x: Float[Array, "batch ... channels"]) -> Float[Array, "batch ... channels"]:
        """Normalises every sample by its own mean and variance."""
        y, *_ = normalize(
            x,
            self.scale[...],
            self.bias[...],
            per_channel=False,
            epsilon=self.epsilon,
            gradients=self.gradients,
        )
        return y


class ConvNormAct(nnx.Module):
    """Convolution, BatchNorm, activation; a kernel of one pixel is a matrix product."""

    def __init__(
        self,
        config: MobileViTV2Config,
        inputs: int,
        outputs: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        per_channel: bool = False,
        act: Callable[[Array], Array] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.convolution: Pointwise | Convolution
        if kernel_size == 1 and not per_channel:
            self.convolution = Pointwise(config, inputs, outputs, bias=False, rngs=rngs)
        else:
            self.convolution = Convolution(
                config,
                inputs,
                outputs,
                kernel_size=kernel_size,
                stride=stride,
                dilation=dilation,
                per_channel=per_channel,
                rngs=rngs,
            )
        self.normalization = BatchNorm(config, outputs, rngs=rngs)
        self.act = act

    def __call__(self, x: Features) -> Features:
        """Applies the three in turn."""
        return self.normalization(self.convolution(x), self.act)


class StochasticDepth(nnx.Dropout):
    """Leaves a residual branch out for some images in training, and scales it up for the others."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate, broadcast_dims=(1, 2, 3))


class InvertedResidual(nnx.Module):
    """MobileNetV2's block: 1x1 expansion, 3x3 depthwise, linear 1x1 projection.

    The input is added where neither size nor channels change. Source: arXiv 1801.04381, and
    `InvertedResidual` of ml-cvnets `cvnets/modules/mobilenetv2.py`.
    """

    def __init__(
        self,
        config: MobileViTV2Config,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        drop_rate: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        hidden = make_divisible(round(inputs * config.expand_ratio), 8)
        act = activation(config)
        self.expand = ConvNormAct(config, inputs, hidden, act=act, rngs=rngs)
        self.depthwise = ConvNormAct(
            config,
            hidden,
            hidden,
            kernel_size=3,
            stride=stride,
            dilation=dilation,
            per_channel=True,
            act=act,
            rngs=rngs,
        )
        self.project = ConvNormAct(config, hidden, outputs, rngs=rngs)
        self.residual = stride == 1 and inputs == outputs
        self.drop = StochasticDepth(drop_rate)

    def __call__(self, x: Features, rngs: nnx.Rngs | None = None) -> Features:
        """Applies the block."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + self.drop(y, rngs=rngs) if self.residual else y
