"""Each platform gets the form that suits it, known when a program is traced or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilevitv2_jax.models.layers import pointwise
from mobilevitv2_jax.models.normalization import normalize
from mobilevitv2_jax.models.platform import by_platform, traced_for

FORMS = {"cpu": lambda x: jnp.sin(x), "tpu": lambda x: jnp.cos(x)}


def form(x):
    return by_platform(x, default=jnp.tan, **FORMS)


@pytest.mark.parametrize(
    ("platform", "lowered", "operation"),
    [("cpu", "cpu", "sine"), ("tpu", "tpu", "cosine"), ("gpu", "cuda", "tan")],
)
def test_a_form_is_chosen_by_what_is_said_or_compiled_for(platform, lowered, operation):
    x = jnp.ones(3)
    text = jax.jit(form).trace(x).lower(lowering_platforms=(lowered,)).as_text()
    assert f"stablehlo.{operation} " in text
    # Said, it counts, whatever the program is compiled for, and nothing else is traced.
    with traced_for(platform):
        traced = jax.jit(form).trace(x)
    assert f"stablehlo.{operation} " in traced.lower().as_text()
    assert "cond" not in str(traced.jaxpr) and "platform_index" not in str(traced.jaxpr)


def test_what_is_said_ends_with_the_block():
    with pytest.raises(KeyError), traced_for("tpu"):
        raise KeyError
    np.testing.assert_allclose(form(jnp.ones(())), np.sin(1), rtol=1e-6)


def test_one_process_traces_gradients_for_one_platform_after_the_other():
    """Whatever jax remembers of functions that were traced before."""

    def loss(x):
        scale = jnp.ones(x.shape[-1])
        y, *_ = normalize(x, scale, scale, per_channel=True, epsilon=1e-5)
        return jnp.square(pointwise(y[0], jnp.eye(x.shape[-1]), "auto")).sum()

    def convolutions(platform):
        with traced_for(platform):
            return str(jax.jit(jax.grad(loss)).trace(jnp.ones((1, 2, 4, 4, 8))).jaxpr)

    for platform, count in (("cpu", 0), ("tpu", 2), ("cpu", 0), ("gpu", 0), ("tpu", 2)):
        assert convolutions(platform).count("conv_general_dilated[") == count, platform


def test_the_forms_of_a_pointwise_map_agree_in_values_and_gradients():
    random = np.random.RandomState(0)
    x, kernel = random.normal(size=(2, 5, 4, 6)), random.normal(size=(6, 3))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)

    def both(form):
        y, pull = jax.vjp(lambda x, kernel: pointwise(x, kernel, form), x, kernel)
        return y, *pull(jnp.cos(y))

    for ours, product in zip(both("convolution"), both("product"), strict=True):
        np.testing.assert_allclose(ours, product, rtol=1e-5, atol=1e-5)
