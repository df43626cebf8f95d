"""Normalisation and the activation after it, with a gradient written out.

Differentiation by itself takes four sums over the activations one after the other, works out the
activation's derivative in each, and keeps float32 arrays that follow from the input. Written out,
all sums of the gradient are taken in one pass, a second one gives the result, and nothing is kept
but the input and its moments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mobilevitv2_jax.models.platform import by_platform

Activation = Callable[[Array], Array] | None
Groups = Float[Array, "groups members ... channels"]
"""What is normalised: each group by moments of its own."""
Moments = Float[Array, "groups 1 ... channels|1"]


def statistics_dtype(x: Array) -> jnp.dtype:
    """Returns the type in which sums over `x` are taken: float32, or wider if `x` is."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _means(terms: Sequence[Groups], per_channel: bool) -> list[Moments]:
    """Returns the means of several arrays over each group, for each channel or over all of them."""

    def in_two(*terms: Groups) -> list[Array]:
        # XLA:CPU takes a sum over everything on one core. These leave the members, so that they
        # are taken on all; the barrier keeps XLA from joining them with the sums over those.
        groups, members, *_, channels = terms[0].shape
        sums = [x.reshape(groups * members, -1, channels).sum(1) for x in terms]
        shape = (groups, members, *(1,) * (terms[0].ndim - 3), channels)
        sums = lax.optimization_barrier(sums)
        return [x.reshape(shape).sum(1, keepdims=True) for x in sums]

    axes = tuple(range(1, terms[0].ndim - 1))

    def apart(*terms: Groups) -> list[Array]:
        return [x.sum(axes, keepdims=True) for x in terms]

    def joined(*terms: Groups) -> list[Array]:
        # XLA:GPU would read what they are made of once for each sum.
        zeros = [jnp.zeros((), x.dtype) for x in terms]
        sums = lax.reduce(
            list(terms), zeros, lambda left, right: list(map(jnp.add, left, right)), axes
        )
        return [jnp.expand_dims(x, axes) for x in sums]

    count = math.prod(terms[0].shape[1:-1])
    sums = by_platform(*terms, cpu=in_two, tpu=apart, default=joined)
    means = [x / count for x in sums]
    return means if per_channel else [x.mean(-1, keepdims=True) for x in means]


def _moments(x: Groups, per_channel: bool) -> tuple[Moments, Moments]:
    """Returns mean and variance, from one pass over `x`."""

    def first(x: Groups) -> Array:
        at = x[(slice(None), *(slice(1),) * (x.ndim - 2))]
        return at if per_channel else at.mean(-1, keepdims=True)

    # Squares of what is left beside the first value lose no digits to a mean far from 0. Compilers
    # for accelerators take plain squares together with the convolution that comes before, and
    # would have to wait for it.
    shift = by_platform(x, cpu=first, default=lambda x: jnp.zeros_like(first(x)))
    rest = x - shift
    mean, square = _means((rest, jnp.square(rest)), per_channel)
    return mean + shift, jnp.maximum(square - jnp.square(mean), 0)


def apply(
    x: Groups,
    moments: tuple[Moments, Moments],
    scale: Array,
    bias: Array,
    epsilon: float,
    act: Activation,
) -> Groups:
    """Returns what is normalised by given moments, scaled, and activated, in the type of `x`."""
    mean, variance = moments
    wide = x.astype(statistics_dtype(x))
    y = (wide - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias
    return (y if act is None else act(y)).astype(x.dtype)


def _derived(
    x: Groups, scale: Array, bias: Array, per_channel: bool, epsilon: float, act: Activation
) -> tuple[Groups, Moments, Moments]:
    """The same as `_written`, with the gradient that differentiation gives."""
    wide = x.astype(statistics_dtype(x))
    axes = tuple(range(1, x.ndim - per_channel))
    mean = wide.mean(axes, keepdims=True)
    variance = jnp.square(wide - mean).mean(axes, keepdims=True)
    return apply(x, (mean, variance), scale, bias, epsilon, act), mean, variance


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _written(
    x: Groups, scale: Array, bias: Array, per_channel: bool, epsilon: float, act: Activation
) -> tuple[Groups, Moments, Moments]:
    # Without a gradient, as in an exported program, it is plain arithmetic.
    return _derived(x, scale, bias, per_channel, epsilon, act)


def _written_forward(
    x: Groups, scale: Array, bias: Array, per_channel: bool, epsilon: float, act: Activation
) -> tuple[tuple[Groups, Moments, Moments], Any]:
    mean, variance = moments = _moments(x.astype(statistics_dtype(x)), per_channel)
    y = apply(x, moments, scale, bias, epsilon, act)
    return (y, mean, variance), (x, scale, bias, mean, lax.rsqrt(variance + epsilon))


def _written_backward(
    per_channel: bool,
    epsilon: float,
    act: Activation,
    kept: Any,
    gradients: tuple[Groups, Moments, Moments],
) -> tuple[Groups, Array, Array]:
    x, scale, bias, mean, inverse = kept
    # Otherwise the compiler finds that the forward pass had the same, and keeps it in float32.
    x = lax.optimization_barrier(x)
    dtype = statistics_dtype(x)
    gradient = gradients[0].astype(dtype)
    normal = (x.astype(dtype) - mean) * inverse
    if act is not None:
        gradient = jax.vjp(act, normal * scale + bias)[1](gradient)[0]
    count = math.prod(x.shape[1:-1])
    means = _means((gradient, gradient * normal), per_channel=True)
    to_bias, to_scale = (mean.reshape(-1, mean.shape[-1]).sum(0) * count for mean in means)
    level, slope = (mean * scale for mean in means)
    if not per_channel:
        level, slope = (mean.mean(-1, keepdims=True) for mean in (level, slope))
    to_x = inverse * (gradient * scale - level - normal * slope)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(bias.dtype)


_written.defvjp(_written_forward, _written_backward)


def normalize(
    x: Groups,
    scale: Float[Array, "channels"],
    bias: Float[Array, "channels"],
    *,
    per_channel: bool,
    epsilon: float,
    act: Activation = None,
    gradients: str = "written",
) -> tuple[Groups, Moments, Moments]:
    """Normalises each group by its own mean and biased variance, scales, and activates.

    Args:
        x: the groups.
        scale: factor of each channel after the normalisation.
        bias: added to each channel after that.
        per_channel: take the moments for each channel, or over all channels of a group.
        epsilon: added to the variance.
        act: the activation, taken in float32 or better; none by default.
        gradients: "written" here, or "derived" by differentiation: for comparison.

    Returns:
        The result in the type of `x`; mean and variance, through which no gradient flows.
    """
    functions: dict[str, Callable] = {"written": _written, "derived": _derived}
    y, mean, variance = functions[gradients](x, scale, bias, per_channel, epsilon, act)
    return y, lax.stop_gradient(mean), lax.stop_gradient(variance)
