"""The switches by which the peers differ, and those by which precision and memory are chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core
from reference_weights import reference_weights, shapes_of

import mobilevitv2_jax as mv
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.attention import MobileViTV2Block
from mobilevitv2_jax.models.backbone import rematerialized
from mobilevitv2_jax.models.layers import Convolution, convolve, trim


def with_reference_weights(model):
    weights = reference_weights(shapes_of(mv.weights.state_dict(model)))
    mv.weights.load_state_dict(model, weights)
    return model


def runner(model, mode="evaluation"):
    """Returns the jitted forward pass, from images to output and statistics."""
    graphs, parameters, statistics = functional.split(model)

    @jax.jit
    def run(parameters, statistics, x):
        model = functional.merge(getattr(graphs, mode), parameters, statistics)
        return model(x, output_hidden_states=True), functional.arrays(model)[1]

    return functools.partial(run, parameters, statistics)


def halved(size, times):
    for _ in range(times):
        size = tuple(-(-side // 2) for side in size)
    return size


def even(size):
    return tuple(-(-side // 2) * 2 for side in size)


# 32 x 32 and 17 x 49 leave a side of one pixel at the end.
ODD = [(32, 32), (17, 49), (1, 1)]
ODD += [
    pytest.param(size, marks=pytest.mark.slow)
    for size in ((257, 193), (96, 96), (224, 224), (200, 264))
]


@pytest.mark.parametrize("size", ODD, ids=str)
@pytest.mark.parametrize("rule", ["resize", "resize_back", "drop"])
def test_feature_maps_of_odd_sizes_have_the_sizes_of_their_rule(make_model, images, rule, size):
    model = make_model(odd_size_rule=rule)
    exact = [halved(size, times) for times in range(1, 6)]

    def sizes():
        output = jax.eval_shape(lambda x: model(x, output_hidden_states=True), images(*size))
        return [x.shape[1:3] for x in output.hidden_states]

    if rule == "drop" and min(min(side) for side in exact[2:]) < 2:
        with pytest.raises(ValueError, match="use a larger image or another rule"):
            sizes()
    elif rule == "resize":
        grown = exact[:2]
        for _ in range(3):
            grown.append(even(halved(grown[-1], 1)))
        assert sizes() == grown
        assert all(a >= b for a, b in zip(grown[-1], exact[-1], strict=True))
    else:
        assert sizes() == exact


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["resize", "resize_back"])
def test_images_that_leave_one_pixel_have_finite_logits(make_model, images, rule):
    model = with_reference_weights(make_model(odd_size_rule=rule))
    output, _ = runner(model)(images(17, 49))
    assert np.isfinite(output.logits).all()
    assert np.ptp(output.logits) > 0


def block(channels=16, **fields):
    """Returns an attention block with scales, biases and statistics that matter."""
    config = mv.MobileViTV2Config(**fields)
    block = MobileViTV2Block(config, channels, 32, layers=1, rngs=nnx.Rngs(0))
    for seed, variable in enumerate(jax.tree.leaves(nnx.state(block), is_leaf=_is_variable)):
        variable.set_value(variable[...] + _noise(variable.shape, seed))
    block.eval()
    return block


def _is_variable(x):
    return isinstance(x, nnx.Variable)


def _noise(shape, seed):
    return np.random.RandomState(seed).uniform(0, 0.2, shape).astype(np.float32)


def run_block(block, x):
    graph, state = nnx.split(block)
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x))


@pytest.mark.slow
def test_the_odd_size_rules_differ_on_odd_maps_and_agree_on_even_ones():
    """Tolerance: 1e-3 of the largest value tells a different result from rounding."""
    for side in (6, 5):
        x = np.random.RandomState(0).normal(size=(2, side, side, 16)).astype(np.float32)
        results = {
            rule: run_block(block(odd_size_rule=rule), x)
            for rule in ("resize", "drop", "resize_back")
        }
        assert results["drop"].shape == results["resize_back"].shape == (2, side, side, 16)
        assert results["resize"].shape == (2, 6, 6, 16)
        if side == 6:
            np.testing.assert_array_equal(results["drop"], results["resize"])
            np.testing.assert_array_equal(results["resize_back"], results["resize"])
        else:
            difference = np.abs(results["drop"] - results["resize_back"]).max()
            assert difference > 1e-3 * np.abs(results["drop"]).max()


@pytest.mark.parametrize(
    "patch", [1, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 4))]
)
@pytest.mark.parametrize("size", [pytest.param((8, 8), marks=pytest.mark.slow), (6, 7)], ids=str)
def test_patches_of_every_size_work_under_every_rule(patch, size):
    x = np.random.RandomState(0).normal(size=(1, *size, 16)).astype(np.float32)
    rounded = tuple(-(-side // patch) * patch for side in size)
    for rule, expected in (("resize", rounded), ("resize_back", size), ("drop", size)):
        y = run_block(block(odd_size_rule=rule, patch_size=patch), x)
        assert y.shape == (1, *expected, 16)
        assert np.isfinite(y).all()


@pytest.mark.slow
def test_the_patch_size_matters():
    x = np.random.RandomState(0).normal(size=(1, 8, 8, 16)).astype(np.float32)
    one, two, four = (run_block(block(patch_size=patch), x) for patch in (1, 2, 4))
    for a, b in ((one, two), (one, four), (two, four)):
        assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()


@pytest.mark.parametrize("kernel_size", [1, 3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dilation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_local_convolution_sees_its_kernel_and_no_further(kernel_size, dilation):
    config = mv.MobileViTV2Config(conv_kernel_size=kernel_size)
    local = MobileViTV2Block(
        config, 4, 8, layers=1, dilation=dilation, rngs=nnx.Rngs(0)
    ).local.convolution
    x = np.zeros((1, 11, 11, 4), np.float32)
    x[0, 5, 5] = 1
    seen = np.asarray(local(x)).any((0, 3))
    reach = {5 + dilation * (tap - kernel_size // 2) for tap in range(kernel_size)}
    expected = np.array([[i in reach and j in reach for j in range(11)] for i in range(11)])
    np.testing.assert_array_equal(seen, expected)


# Output stride, rule -> (stride, dilation) of the depthwise convolutions of stages 4 and 5, and
# the dilation of their local ones: what the three implementations do, read in their sources.
DILATIONS = {
    (32, "cvnets"): (((2, 1), (2, 1)), (1, 1)),
    (32, "huggingface"): (((2, 1), (2, 1)), (1, 1)),
    (16, "cvnets"): (((2, 1), (1, 1)), (1, 2)),
    (16, "huggingface"): (((2, 1), (1, 1)), (1, 1)),
    (8, "cvnets"): (((1, 1), (1, 2)), (2, 4)),
    (8, "huggingface"): (((1, 1), (1, 2)), (1, 1)),
}


@pytest.mark.parametrize(("stride", "rule"), DILATIONS)
def test_strides_and_dilations_are_those_of_the_peers(make_model, stride, rule):
    model = make_model(output_stride=stride, dilation_rule=rule)
    last = [
        (stage[0].depthwise.convolution, stage[1].local.convolution)
        for stage in model.backbone.stages[3:]
    ]
    found = tuple((x.stride, x.dilation) for x, _ in last), tuple(x.dilation for _, x in last)
    assert found == DILATIONS[stride, rule]


@pytest.mark.slow
def test_the_dilation_rules_differ_where_the_output_stride_is_fine(make_model, images):
    """By more than 1 % of the largest logit; at output stride 32 the programs are the same."""
    logits = []
    for rule in ("cvnets", "huggingface"):
        model = make_model(output_stride=16, dilation_rule=rule)
        logits.append(np.asarray(runner(with_reference_weights(model))(images(64))[0].logits))
    assert np.abs(logits[0] - logits[1]).max() > 0.01 * np.abs(logits[0]).max()


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    dilation=st.integers(1, 7),
    size=st.sampled_from([1, 3, 5]),
)
def test_trimming_a_dilated_kernel_leaves_the_convolution_as_it_was(height, width, dilation, size):
    """Tolerance: 1e-5, float32 sums of at most 75 terms."""
    random = np.random.RandomState(0)
    x = random.normal(size=(1, height, width, 3)).astype(np.float32)
    kernel = random.normal(size=(size, size, 3, 2)).astype(np.float32)
    whole = convolve(x, kernel, 1, dilation)
    padding = size // 2 * dilation
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    by_hand = sum(
        padded[:, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
        @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )
    trimmed = trim(kernel, height, width, dilation)
    middle = kernel.shape[0] // 2
    for side, left in zip((height, width), trimmed.shape[:2], strict=True):
        assert left == 2 * min(middle, (side - 1) // dilation) + 1
    np.testing.assert_allclose(whole, by_hand, atol=1e-4)
    config = mv.MobileViTV2Config()
    layer = Convolution(config, 3, 2, kernel_size=size, dilation=dilation, rngs=nnx.Rngs(0))
    layer.kernel.set_value(jnp.asarray(kernel))
    np.testing.assert_allclose(layer(x), whole, atol=1e-4)


@pytest.mark.slow
def test_statistics_over_groups_are_those_of_each_group_run_on_its_own(make_model, images):
    """A whole model: outputs, and running statistics, which are the mean over the groups.

    Tolerance: 1e-4 of the largest value; training mode divides by deviations of small batches.
    """
    x = images(64, batch=4)
    grouped, statistics = runner(
        with_reference_weights(make_model(batch_norm_group_size=2)), "train"
    )(x)
    run = runner(with_reference_weights(make_model()), "train")
    halves = [run(x[:2]), run(x[2:])]
    outputs = [grouped.logits, *grouped.hidden_states]
    for index, y in enumerate(outputs):
        each = [[output.logits, *output.hidden_states][index] for output, _ in halves]
        expected = np.concatenate(each)
        np.testing.assert_allclose(y, expected, atol=1e-4 * np.abs(expected).max())
    for name, y in statistics.items():
        expected = np.mean([half[name] for _, half in halves], axis=0)
        np.testing.assert_allclose(y, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(parameter, core.Jaxpr | core.ClosedJaxpr):
                yield from equations(getattr(parameter, "jaxpr", parameter))


@pytest.mark.parametrize("kind", ["ForImageClassification", "ForSemanticSegmentation"])
def test_in_bfloat16_statistics_softmax_and_loss_are_taken_in_float32(make_model, images, kind):
    fields = {"aspp_out_channels": 16} if kind == "ForSemanticSegmentation" else {}
    model = make_model(getattr(mv, f"MobileViTV2{kind}"), dtype="bfloat16", **fields)
    labels = np.zeros((2,) if "Image" in kind else (2, 64, 64), np.int32)
    for mode in ("eval", "train"):
        getattr(model, mode)()
        graph, state = nnx.split(model)

        def forward(state, x, graph=graph):
            model = nnx.merge(graph, state)
            rngs = nnx.Rngs(dropout=jax.random.key(0))
            return model(x, labels, rngs=rngs), nnx.state(model)

        jaxpr, (output, after) = jax.make_jaxpr(forward, return_shape=True)(state, images(64))
        assert output.logits.dtype == jnp.bfloat16 and output.loss.dtype == jnp.float32
        # whatever the model holds, and what training makes of it
        assert {x.dtype for x in jax.tree.leaves((state, after))} == {np.dtype(np.float32)}
        seen = {"exp": 0, "log": 0, "rsqrt": 0}
        for equation in equations(jaxpr.jaxpr):
            if equation.primitive.name in seen:
                seen[equation.primitive.name] += 1
                assert equation.invars[0].aval.dtype == np.float32, equation
        assert min(seen.values()) > 0, seen  # of softmax, loss and normalisations


@pytest.mark.slow
def test_logits_in_bfloat16_are_near_those_in_float32(make_model, images):
    """Tolerance: 2e-2 of the largest logit; bfloat16 keeps 8 bits, 4e-3 a rounding."""
    x = images(64)
    exact, rounded = (
        np.asarray(runner(with_reference_weights(make_model(dtype=dtype)))(x)[0].logits, np.float32)
        for dtype in ("float32", "bfloat16")
    )
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 0 < error < 2e-2


def step_of(model, apply):
    """Returns loss, gradients and statistics of a step, and what the random stream yields next."""
    graphs, parameters, statistics = functional.split(model)

    @jax.jit
    def step(parameters, statistics):
        def loss(parameters):
            model = functional.merge(graphs.train, parameters, statistics)
            rngs = nnx.Rngs(dropout=jax.random.key(0))
            value = apply(model, rngs)
            return value, (functional.arrays(model)[1], jax.random.key_data(rngs.dropout()))

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    (loss, (moved, key)), gradients = step(parameters, statistics)
    return {"loss": loss, "next key": key, **gradients, **moved}


def require_same_step(plain, again):
    """Tolerance: 1e-4 of max(|leaf|, 1e-3 * the largest value): XLA may fuse the two otherwise."""
    np.testing.assert_array_equal(plain.pop("next key"), again.pop("next key"))
    assert plain.keys() == again.keys()
    largest = max(np.abs(value).max() for value in plain.values())
    for name, value in plain.items():
        scale = max(np.abs(value).max(), 1e-3 * largest)
        assert np.abs(value - again[name]).max() <= 1e-4 * scale, name


@pytest.mark.slow
def test_a_rematerialised_block_has_the_same_gradients_statistics_and_dropout():
    x, weights = np.random.RandomState(0).normal(size=(2, 2, 4, 4, 16)).astype(np.float32)

    def step(call):
        layer = block(attn_dropout=0.2, ffn_dropout=0.1)
        return step_of(layer, lambda layer, rngs: (call(layer, x, rngs) * weights).sum())

    require_same_step(step(lambda layer, x, rngs: layer(x, rngs)), step(rematerialized))


@pytest.mark.slow
def test_a_rematerialised_model_has_the_same_loss_gradients_and_statistics(make_model, images):
    # Of 32 pixels one is left: a BatchNorm over two values, whose gradient is rounding alone.
    x, labels = images(64), np.array([1, 2])

    def step(rematerialize):
        model = make_model(rematerialize=rematerialize, attn_dropout=0.2, depthwise="convolution")
        return step_of(model, lambda model, rngs: model(x, labels, rngs=rngs).loss)

    require_same_step(step(False), step(True))


def test_the_switch_rematerialises_every_block(make_model, images):
    for rematerialize in (False, True):
        graph, state = nnx.split(make_model(rematerialize=rematerialize))
        jaxpr = jax.make_jaxpr(lambda state, x, graph=graph: nnx.merge(graph, state)(x).logits)(
            state, images(64)
        )
        names = [equation.primitive.name for equation in jaxpr.jaxpr.eqns]
        # Stages of 1, 2, 2, 2 and 2 blocks.
        assert sum("checkpoint" in name or "remat" in name for name in names) == 9 * rematerialize
