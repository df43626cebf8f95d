"""The backbone and the image classifier: what goes in, what comes out, in both modes."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mobilevitv2_jax as mv
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.outputs import BackboneOutput, ImageClassifierOutput

# Released widths: ml-cvnets' results table; odd widths: Hugging Face's model, and 0.3 and 2.5
# by arithmetic. With 1000 classes.
PARAMETERS = {
    0.25: 416_673,
    0.3: 573_385,
    0.33: 680_665,
    0.5: 1_370_593,
    0.6: 1_883_473,
    0.75: 2_866_009,
    1.0: 4_901_841,
    1.25: 7_478_089,
    1.5: 10_594_753,
    1.75: 14_251_833,
    1.9: 16_790_201,
    2.0: 18_449_329,
    2.5: 28_454_961,
}
BACKBONE = {0.5: 1_113_593, 1.0: 4_388_841, 2.0: 17_424_329}


def count(kind, **fields):
    model = kind(mv.MobileViTV2Config(**fields), rngs=Blank())
    return sum(x.size for x in functional.arrays(model)[0].values())


@pytest.mark.parametrize(
    "width",
    [
        pytest.param(width, marks=() if width in (0.3, 0.5, 1.0, 2.0) else pytest.mark.slow)
        for width in PARAMETERS
    ],
)
def test_parameter_counts_are_those_of_the_original(width):
    fields = {"width_multiplier": width, "num_labels": 1000}
    assert count(mv.MobileViTV2ForImageClassification, **fields) == PARAMETERS[width]
    if width in BACKBONE:
        assert count(mv.MobileViTV2Model, width_multiplier=width) == BACKBONE[width]


def test_feature_maps_halve_from_stage_to_stage_on_images_that_are_not_square(make_model, images):
    model = make_model()
    output = jax.eval_shape(lambda x: model(x, output_hidden_states=True), images(64, 128))
    assert output.logits.shape == (2, 5)
    assert [x.shape for x in output.hidden_states] == [
        (2, 32, 64, 16),
        (2, 16, 32, 32),
        (2, 8, 16, 64),
        (2, 4, 8, 96),
        (2, 2, 4, 128),
    ]


@pytest.mark.parametrize(
    ("output_stride", "sides"), [(32, (8, 4, 2)), (16, (8, 4, 4)), (8, (8, 8, 8))]
)
def test_the_output_stride_keeps_late_feature_maps_large(make_model, images, output_stride, sides):
    model = make_model(output_stride=output_stride)
    output = jax.eval_shape(lambda x: model(x, output_hidden_states=True), images(64))
    assert tuple(x.shape[1] for x in output.hidden_states[2:]) == sides


@pytest.mark.parametrize(("rule", "side"), [("resize", 2), ("drop", 1), ("resize_back", 1)])
def test_odd_feature_maps_follow_their_rule(make_model, images, rule, side):
    model = make_model(odd_size_rule=rule)
    if rule == "drop":
        with pytest.raises(ValueError, match="at least 2x2, got 1x1"):
            jax.eval_shape(model, images(32))
        output = jax.eval_shape(lambda x: model(x, output_hidden_states=True), images(96))
        assert output.hidden_states[-1].shape[1:3] == (3, 3)
    else:
        output = jax.eval_shape(lambda x: model(x, output_hidden_states=True), images(32))
        assert output.hidden_states[-1].shape[1:3] == (side, side)


@pytest.mark.parametrize("shape", [(32, 32, 3), (2, 3, 32, 32), (2, 32, 32, 4), (2, 32, 32)])
def test_images_of_the_wrong_shape_are_refused(make_model, shape):
    with pytest.raises(ValueError, match=r"\[batch, height, width, 3\] \(channels last\), got"):
        make_model()(np.zeros(shape, np.float32))


@pytest.mark.slow
def test_a_jitted_function_can_return_the_outputs(make_model, images):
    graphs, parameters, statistics = functional.split(make_model())

    @jax.jit
    def forward(parameters, statistics, x, labels):
        model = functional.merge(graphs.evaluation, parameters, statistics)
        return model(x, labels, output_hidden_states=True), model.backbone(x)

    output, features = forward(parameters, statistics, images(), np.array([1, 2]))
    assert isinstance(output, ImageClassifierOutput) and isinstance(features, BackboneOutput)
    assert output.keys() == ["loss", "logits", "hidden_states"]
    assert features.keys() == ["last_hidden_state", "pooler_output"]
    np.testing.assert_array_equal(output["logits"], output[1])
    np.testing.assert_array_equal(output.hidden_states[-1], features.last_hidden_state)
    np.testing.assert_allclose(
        features.pooler_output, features.last_hidden_state.mean((1, 2)), rtol=1e-5, atol=1e-6
    )


def test_without_return_dict_the_outputs_are_tuples_of_what_is_set(make_model, images):
    model, x, labels = make_model(), images(), np.array([1, 2])

    def shapes(call, *arguments, **options):
        output = jax.eval_shape(lambda x: call(x, *arguments, **options), x)
        assert type(output) is tuple
        return [len(item) if isinstance(item, tuple) else item.shape for item in output]

    assert shapes(model, return_dict=False) == [(2, 5)]
    assert shapes(model, labels, return_dict=False) == [(), (2, 5)]
    both = shapes(model, labels, return_dict=False, output_hidden_states=True)
    assert both == [(), (2, 5), 5]
    backbone = model.backbone
    assert shapes(backbone, return_dict=False) == [(2, 2, 2, 128), (2, 128)]
    model = make_model(return_dict=False, output_hidden_states=True)
    assert shapes(model) == [(2, 5), 5]


@pytest.mark.slow
def test_the_backbone_pools_only_when_asked_to(images):
    config = mv.MobileViTV2Config(width_multiplier=0.25)
    model = nnx.eval_shape(lambda: mv.MobileViTV2Model(config, False, rngs=nnx.Rngs(0)))
    output = nnx.eval_shape(lambda model, x: model(x), model, images())
    assert output.keys() == ["last_hidden_state"]


@pytest.mark.slow
def test_without_labels_the_logits_are_the_pooled_features(make_model, images):
    model = make_model(num_labels=0)
    assert model.classifier is None
    x = images()
    logits, pooled = nnx.jit(lambda m, x: (m(x).logits, m.backbone(x).pooler_output))(model, x)
    np.testing.assert_allclose(logits, pooled, rtol=1e-6)


def test_inference_never_changes_the_config(make_model, images):
    model = make_model()
    before = copy.copy(model.config)
    jax.eval_shape(model, images(), np.array([1, 2]))
    jax.eval_shape(model, images(), np.zeros((2, 5), np.float32))
    assert model.config == before
    assert model.config.problem_type is None
    with pytest.raises(AttributeError):
        model.config.problem_type = "regression"


@pytest.mark.slow
def test_training_moves_the_statistics_and_evaluation_does_not(make_model, images):
    graphs, parameters, statistics = functional.split(make_model())

    def after(graph):
        @jax.jit
        def run(parameters, statistics, x):
            model = functional.merge(graph, parameters, statistics)
            model(x)
            return functional.arrays(model)

        return run(parameters, statistics, images())

    same_parameters, same_statistics = after(graphs.evaluation)
    kept_parameters, moved_statistics = after(graphs.train)
    for name, x in statistics.items():
        np.testing.assert_array_equal(x, same_statistics[name])
        assert not np.array_equal(x, moved_statistics[name]), name
    for name, x in parameters.items():
        np.testing.assert_array_equal(x, same_parameters[name])
        np.testing.assert_array_equal(x, kept_parameters[name])


@pytest.mark.slow
def test_dropout_needs_a_source_of_randomness_only_where_it_is_on(make_model, images):
    def trace(graph, rngs=None):
        def logits(x):
            model = functional.merge(graph, parameters, statistics)
            return model(x, rngs=rngs and nnx.Rngs(0)).logits

        return jax.eval_shape(logits, images())

    graphs, parameters, statistics = functional.split(make_model())
    trace(graphs.train)
    for field in ("attn_dropout", "ffn_dropout", "stochastic_depth"):
        graphs, parameters, statistics = functional.split(make_model(**{field: 0.5}))
        trace(graphs.evaluation)
        with pytest.raises(Exception, match="rngs"):
            trace(graphs.train)
        trace(graphs.train, rngs=True)


@pytest.mark.slow
def test_classifier_dropout_acts_only_when_it_is_asked_for(make_model, images):
    for on in (False, True):
        model = make_model(classifier_dropout_prob=0.5, classifier_dropout=on)
        graphs, parameters, statistics = functional.split(model)

        @jax.jit
        def logits(parameters, statistics, key, graph=graphs.train):
            model = functional.merge(graph, parameters, statistics)
            return model(images(), rngs=nnx.Rngs(dropout=key)).logits

        first, second = (logits(parameters, statistics, jax.random.key(i)) for i in range(2))
        assert np.array_equal(first, second) == (not on)


@pytest.mark.slow
def test_the_activation_may_be_a_function(make_model, images):
    by_name = make_model(hidden_act="tanh")
    by_function = make_model(hidden_act=jnp.tanh)
    x = images()
    run = nnx.jit(lambda model, x: model(x).logits)
    np.testing.assert_array_equal(run(by_name, x), run(by_function, x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_computes_in_that_type_and_keeps_float32_parameters(
    make_model, images, dtype
):
    model = make_model(dtype=dtype)
    output = jax.eval_shape(model, images(), np.array([1, 2]))
    assert output.logits.dtype == dtype
    assert output.loss.dtype == jnp.float32
    assert {x.dtype for x in functional.arrays(model)[0].values()} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_gradients_reach_every_parameter(make_model, images):
    # As convolutions, depthwise layers compile sooner.
    graphs, parameters, statistics = functional.split(make_model(depthwise="convolution"))

    @jax.jit
    def gradients(parameters):
        def loss(parameters):
            model = functional.merge(graphs.train, parameters, statistics)
            return model(images(64), np.array([1, 2])).loss

        return jax.grad(loss)(parameters)

    for name, gradient in gradients(parameters).items():
        assert np.isfinite(gradient).all() and np.asarray(gradient).any(), name
