"""The optimizers against PyTorch's definitions, written down again in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import tiny_config

from mobilevitv2_jax.config import model_config
from mobilevitv2_jax.models.functional import split
from mobilevitv2_jax.models.tasks import MobileViTV2ForImageClassification
from mobilevitv2_jax.training.optimizer import (
    clip_by_norm,
    decay_mask,
    hold_frozen,
    learning_rate_scales,
    make_optimizer,
)

STEPS = 8
RATES = np.linspace(0.1, 0.02, STEPS)

# float32 against float64 over a few steps of values near 1: rounding is 6e-8 an operation.
TOLERANCE = 1e-5


def adamw(parameter, gradients, rate, decay, betas=(0.9, 0.999), epsilon=1e-8):
    """The algorithm in the documentation of torch.optim.AdamW: the decay is decoupled."""
    first = second = np.zeros_like(parameter)
    for step, gradient in enumerate(gradients, start=1):
        parameter = parameter * (1 - rate[step - 1] * decay)
        first = betas[0] * first + (1 - betas[0]) * gradient(parameter, step)
        second = betas[1] * second + (1 - betas[1]) * gradient(parameter, step) ** 2
        corrected = first / (1 - betas[0] ** step)
        root = np.sqrt(second / (1 - betas[1] ** step))
        parameter = parameter - rate[step - 1] * corrected / (root + epsilon)
    return parameter


def sgd(parameter, gradients, rate, decay, momentum=0.9):
    """The algorithm in the documentation of torch.optim.SGD: the decay is in the gradient."""
    velocity = None
    for step, gradient in enumerate(gradients, start=1):
        change = gradient(parameter, step) + decay * parameter
        velocity = change if velocity is None else momentum * velocity + change
        parameter = parameter - rate[step - 1] * velocity
    return parameter


REFERENCES = {"adamw": adamw, "sgd": sgd}


def optimizer_config(name, **changes):
    return tiny_config(
        {"optimizer.name": name, "optimizer.weight_decay": 0.3}
        | {f"optimizer.{key}": value for key, value in changes.items()}
    )


def start():
    random = np.random.RandomState(0)
    return {
        "layer.kernel": random.randn(4, 3).astype(np.float32),
        "layer.bias": random.randn(3).astype(np.float32),
    }


def noise(step, shape):
    return np.random.RandomState(step).randn(*shape).astype(np.float32)


def ours(config, parameters):
    """Takes the steps as the training step does: the learning rate outside of optax."""
    optimizer = make_optimizer(config)
    state = optimizer.init(parameters)
    for step, rate in enumerate(RATES, start=1):
        gradients = {path: noise(step, value.shape) for path, value in parameters.items()}
        direction, state = optimizer.update(gradients, state, parameters)
        parameters = jax.tree.map(lambda p, d, r=rate: p - r * d, parameters, direction)
    return parameters


@pytest.mark.parametrize("decay_one_dimensional", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_trajectory_is_that_of_pytorch(name, decay_one_dimensional):
    config = optimizer_config(name, decay_one_dimensional=decay_one_dimensional)
    found = ours(config, jax.tree.map(jnp.asarray, start()))
    for path, value in start().items():
        decay = 0.3 if decay_one_dimensional or path == "layer.kernel" else 0.0
        gradients = [lambda p, step: noise(step, p.shape).astype(np.float64)] * STEPS
        expected = REFERENCES[name](value.astype(np.float64), gradients, RATES, decay)
        np.testing.assert_allclose(found[path], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_options_of_adamw_reach_it():
    config = optimizer_config("adamw", betas=(0.8, 0.95), epsilon=0.1)
    found = ours(config, jax.tree.map(jnp.asarray, start()))["layer.kernel"]
    gradients = [lambda p, step: noise(step, p.shape).astype(np.float64)] * STEPS
    expected = adamw(
        start()["layer.kernel"].astype(np.float64), gradients, RATES, 0.3, (0.8, 0.95), 0.1
    )
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture(scope="module")
def model_parameters():
    config = model_config(tiny_config(), num_labels=10)
    model = nnx.eval_shape(
        lambda: MobileViTV2ForImageClassification(config, rngs=nnx.Rngs(0)),
    )
    return split(model)[1]


def test_exactly_the_kernels_of_the_model_are_decayed(model_parameters):
    mask = decay_mask(model_parameters, False)
    assert mask.keys() == model_parameters.keys()
    kernels = {path for path in model_parameters if path.endswith(".kernel")}
    assert {path for path, decayed in mask.items() if decayed} == kernels
    assert {path.rsplit(".", 1)[1] for path in model_parameters.keys() - kernels} == {
        "scale",
        "bias",
    }
    assert all(decay_mask(model_parameters, True).values())


@pytest.mark.parametrize("name", REFERENCES)
def test_without_a_gradient_only_kernels_move(model_parameters, name):
    optimizer = make_optimizer(optimizer_config(name))
    ones = {path: np.ones((1,) * x.ndim, np.float32) for path, x in model_parameters.items()}
    zeros = jax.tree.map(np.zeros_like, ones)
    direction, _ = optimizer.update(zeros, optimizer.init(ones), ones)
    for path, change in direction.items():
        # The decay times a parameter of 1, in float32.
        expected = np.float32(0.3) if path.endswith(".kernel") else 0
        assert (np.asarray(change) == expected).all(), path


def test_by_default_all_parameters_learn_at_the_same_rate(model_parameters):
    scales = learning_rate_scales(model_parameters, tiny_config())
    assert scales.keys() == model_parameters.keys()
    assert set(scales.values()) == {1.0}


def test_each_stage_learns_slower_than_the_one_after_it(model_parameters):
    config = tiny_config({"optimizer.layer_decay": 0.5})
    scales = learning_rate_scales(model_parameters, config)
    found = {}
    for path, scale in scales.items():
        words = path.split(".")
        place = ".".join(words[: 3 if words[1] == "stages" else 2 if len(words) > 2 else 1])
        found.setdefault(place, set()).add(scale)
    stages = {f"backbone.stages.{number}": {0.5 ** (5 - number)} for number in range(5)}
    assert found == {"classifier": {1.0}, "backbone.stem": {0.5**6}, **stages}


def test_a_frozen_backbone_has_the_rate_0_and_asks_for_no_gradient(model_parameters):
    config = tiny_config({"optimizer.freeze_backbone": True, "optimizer.layer_decay": 0.5})
    scales = learning_rate_scales(model_parameters, config)
    learning = {path for path, scale in scales.items() if scale}
    assert learning == {"classifier.kernel", "classifier.bias"}
    assert {scales[path] for path in learning} == {1.0}
    parameters = {"backbone.x": jnp.ones(2), "classifier.x": jnp.ones(2)}

    def loss(parameters):
        return sum(array.sum() for array in hold_frozen(parameters, config).values())

    gradients = jax.grad(loss)(parameters)
    assert not gradients["backbone.x"].any() and gradients["classifier.x"].all()


def test_a_gradient_above_the_limit_is_scaled_to_it_as_pytorch_does():
    gradients = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    clipped = clip_by_norm(gradients, optax.tree.norm(gradients), 2.0)
    scale = 2.0 / (5.0 + 1e-6)  # torch.nn.utils.clip_grad_norm_
    # One division and one product in float32.
    np.testing.assert_allclose(clipped["a"], [3 * scale, 0], rtol=3e-7)
    np.testing.assert_allclose(clipped["b"], [[4 * scale]], rtol=3e-7)


@pytest.mark.parametrize("limit", [6.0, 0.0])
def test_a_gradient_below_the_limit_or_without_one_keeps_its_bits(limit):
    gradients = {"a": jnp.asarray([3.3, 0.1]), "b": jnp.asarray([[3.7]])}
    clipped = clip_by_norm(gradients, optax.tree.norm(gradients), limit)
    for path, gradient in gradients.items():
        np.testing.assert_array_equal(clipped[path], gradient)
