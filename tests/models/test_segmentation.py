"""The segmentation model: its size, its heads, and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import mobilevitv2_jax as mv
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.heads import HEADS, AuxiliaryHead, DeepLabV3
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.losses import mean_cross_entropy, segmentation_loss
from mobilevitv2_jax.models.resize import adaptive_average_pool, resize_bilinear
from mobilevitv2_jax.models.tasks import AUXILIARY_WEIGHT

# By width, with 21 classes and without the auxiliary head: DeepLabV3 and PSPNet; and the auxiliary
# head with 21 and with 150 classes. DeepLabV3: Hugging Face's model; the others: arithmetic on
# ml-cvnets' `cvnets/models/segmentation/heads/`.
PARAMETERS = {
    0.5: ({"deeplabv3": 6_242_318, "pspnet": 3_550_734}, {21: 224_149, 150: 240_790}),
    0.75: ({"deeplabv3": 9_510_278, "pspnet": 6_179_974}, {21: 334_741, 150: 351_382}),
    1.0: ({"deeplabv3": 13_318_654, "pspnet": 9_382_398}, {21: 445_333, 150: 461_974}),
    1.25: ({"deeplabv3": 17_667_446, "pspnet": 13_158_006}, {21: 555_925, 150: 572_566}),
    1.5: ({"deeplabv3": 22_556_654, "pspnet": 17_506_798}, {21: 749_829, 150: 768_534}),
    1.75: ({"deeplabv3": 27_986_278, "pspnet": 22_428_774}, {21: 1_019_949, 150: 1_041_750}),
    2.0: ({"deeplabv3": 33_956_318, "pspnet": 27_923_934}, {21: 1_331_541, 150: 1_356_438}),
}
CLASSIFIER = 512 + 1  # parameters of either head for one more class
SMALL = {"num_labels": 4, "aspp_out_channels": 16, "output_stride": 16}


@pytest.fixture
def make_segmenter(make_model):
    """Returns a function that makes a small segmenter, in evaluation mode, of changed fields."""

    def make(**fields):
        return make_model(mv.MobileViTV2ForSemanticSegmentation, **{**SMALL, **fields})

    return make


def labels_of(*shape, seed=0):
    labels = np.random.RandomState(seed).randint(0, 4, shape)
    labels[..., :3] = 255
    return labels


def count(kind, **fields):
    config = mv.MobileViTV2Config(output_stride=16, **fields)
    parameters, _ = functional.arrays(kind(config, rngs=Blank()))
    return sum(x.size for x in parameters.values())


@pytest.mark.parametrize("width", PARAMETERS)
def test_parameter_counts_are_those_of_the_original(width):
    whole, auxiliary = PARAMETERS[width]
    backbone = count(mv.MobileViTV2Model, width_multiplier=width)
    for labels, own in auxiliary.items():
        fields = {"width_multiplier": width, "num_labels": labels}
        assert count(AuxiliaryHead, **fields) == own
        for head, kind in HEADS.items():
            expected = whole[head] + CLASSIFIER * (labels - 21)
            assert backbone + count(kind, **fields) == expected


@pytest.mark.parametrize("head", HEADS)
def test_the_model_is_the_backbone_the_head_and_where_asked_for_the_auxiliary_head(head):
    whole, auxiliary = PARAMETERS[0.75]
    fields = {"width_multiplier": 0.75, "num_labels": 21, "segmentation_head": head}
    for has_auxiliary, expected in ((False, whole[head]), (True, whole[head] + auxiliary[21])):
        found = count(mv.MobileViTV2ForSemanticSegmentation, auxiliary_head=has_auxiliary, **fields)
        assert found == expected


@pytest.mark.parametrize(
    ("head", "stride", "height", "width"),
    [
        pytest.param("deeplabv3", 32, 64, 64, marks=pytest.mark.slow),
        ("deeplabv3", 16, 128, 192),
        pytest.param("deeplabv3", 8, 64, 64, marks=pytest.mark.slow),
        pytest.param("pspnet", 16, 64, 64, marks=pytest.mark.slow),
        ("pspnet", 8, 128, 192),
    ],
)
def test_logits_have_the_size_of_the_image_over_the_output_stride(
    make_segmenter, images, head, stride, height, width
):
    model = make_segmenter(output_stride=stride, segmentation_head=head)
    output = jax.eval_shape(model, images(height, width))
    assert output.logits.shape == (2, height // stride, width // stride, 4)
    assert output.keys() == ["logits"] and output.attentions is None


@pytest.mark.parametrize("num_labels", [0, 1])
def test_fewer_than_two_classes_are_refused_with_the_remedy(make_segmenter, num_labels):
    message = rf"at least 2 for segmentation, got {num_labels}: background and one.*num_labels=2"
    with pytest.raises(ValueError, match=message):
        make_segmenter(num_labels=num_labels)
    if num_labels:
        with pytest.raises(ValueError, match="num_labels=2"):
            segmentation_loss(
                np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2)), ignored=255, align_corners=False
            )


@pytest.mark.parametrize("shape", [(2, 64), (3, 64, 64), (2, 64, 64, 1)])
def test_labels_that_are_no_batch_of_maps_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[2, height, width\], got"):
        segmentation_loss(
            np.zeros((2, 4, 4, 5)), np.zeros(shape, int), ignored=255, align_corners=False
        )


@pytest.mark.parametrize("ignored", [255, 3, -1])
def test_the_loss_is_the_mean_over_the_pixels_that_are_not_ignored(ignored):
    """Tolerance: 1e-6, float32 sums of 40 terms."""
    logits = np.random.RandomState(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
    labels = np.random.RandomState(1).randint(0, 3, (2, 5, 6))
    labels[:, :, :2] = ignored
    counted = labels != ignored
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(shares[counted, labels[counted]]).mean()
    loss = segmentation_loss(logits, labels, ignored=ignored, align_corners=False)
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("align_corners", [pytest.param(False, marks=pytest.mark.slow), True])
def test_where_every_pixel_is_ignored_loss_and_gradient_are_zero(align_corners):
    def loss(logits):
        labels = np.full((2, 9, 9), 255)
        return segmentation_loss(logits, labels, ignored=255, align_corners=align_corners)

    value, gradient = jax.value_and_grad(loss)(jnp.ones((2, 3, 3, 4)))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
def test_the_loss_is_taken_at_the_size_of_the_labels(make_segmenter):
    """The switch `align_corners` is that of the resizing, and matters."""
    logits = np.random.RandomState(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    labels = labels_of(2, 30, 50)
    losses = []
    for align_corners in (False, True):
        model = make_segmenter(align_corners=align_corners)
        large = resize_bilinear(logits, (30, 50), align_corners=align_corners)
        losses.append(float(model.loss(logits, labels)))
        expected = mean_cross_entropy(large, labels, ignored=255)
        assert losses[-1] == pytest.approx(float(expected), rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3


def interpolate(x, size, align_corners):
    """Bilinear interpolation of one channel, pixel by pixel, as PyTorch documents it."""
    y = np.zeros(size)
    for place in np.ndindex(*size):
        corners = []
        for index, source, target in zip(place, x.shape, size, strict=True):
            if align_corners:
                position = index * (source - 1) / (target - 1) if target > 1 else 0.0
            else:
                position = min(max((index + 0.5) * source / target - 0.5, 0.0), source - 1)
            low = int(np.floor(position))
            high = min(low + 1, source - 1)
            corners.append(((low, 1 - (position - low)), (high, position - low)))
        y[place] = sum(a * b * x[i, j] for i, a in corners[0] for j, b in corners[1])
    return y


SIDES = st.sampled_from([1, 2, 3, 7])


@settings(max_examples=20, deadline=None)
@given(source=st.tuples(SIDES, SIDES), target=st.tuples(SIDES, SIDES), align_corners=st.booleans())
def test_bilinear_resizing_is_the_formula_in_both_conventions(source, target, align_corners):
    """Tolerance: 1e-5, products of float32 matrices."""
    x = np.random.RandomState(0).normal(size=(1, *source, 2)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        y = resize_bilinear(x, target, align_corners=align_corners)
    expected = [interpolate(x[0, ..., channel], target, align_corners) for channel in range(2)]
    np.testing.assert_allclose(y[0], np.stack(expected, -1), atol=1e-5)


def test_resizing_to_the_same_size_changes_nothing():
    x = np.random.RandomState(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    for align_corners in (False, True):
        y = resize_bilinear(x, (3, 4), align_corners=align_corners)
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_adaptive_pooling_takes_the_means_of_rectangles_that_cover_the_map(bins):
    """Where the bins do not divide the map they overlap. Tolerance: float32 means."""
    x = np.random.RandomState(0).normal(size=(2, 4, 15, 3)).astype(np.float32)
    pooled = jax.jit(adaptive_average_pool, static_argnums=1)(x, bins)
    for row, column in np.ndindex(bins, bins):
        top, bottom = 4 * row // bins, int(np.ceil(4 * (row + 1) / bins))
        left, right = 15 * column // bins, int(np.ceil(15 * (column + 1) / bins))
        expected = x[:, top:bottom, left:right].mean((1, 2))
        np.testing.assert_allclose(pooled[:, row, column], expected, atol=1e-6)


@pytest.mark.slow
def test_the_auxiliary_head_counts_in_training_only_and_with_its_weight(make_segmenter, images):
    """Tolerance: 1e-6, one sum in float32."""
    model = make_segmenter(auxiliary_head=True, aspp_dropout_prob=0.0, classifier_dropout_prob=0.0)
    x, labels = images(64), labels_of(2, 64, 64)
    evaluated = jax.eval_shape(model, x, labels)
    assert evaluated.keys() == ["loss", "logits"] and evaluated.auxiliary_logits is None
    graphs, parameters, statistics = functional.split(model)

    @jax.jit
    def forward(parameters, statistics):
        model = functional.merge(graphs.train, parameters, statistics)
        output = model(x, labels)
        return output, [model.loss(y, labels) for y in (output.logits, output.auxiliary_logits)]

    output, (main, auxiliary) = forward(parameters, statistics)
    assert output.auxiliary_logits.shape == output.logits.shape
    assert AUXILIARY_WEIGHT == 0.4
    assert output.loss == pytest.approx(float(main + 0.4 * auxiliary), rel=1e-6)


@pytest.mark.slow
def test_in_training_the_head_drops_elements_and_then_whole_channels():
    config = mv.MobileViTV2Config(
        width_multiplier=0.25, aspp_out_channels=16, classifier_dropout_prob=0.5, num_labels=4
    )
    head = DeepLabV3(config, rngs=nnx.Rngs(0))
    x = jnp.ones((8, 4, 4, 16))
    channels = np.asarray(head.channel_dropout(x, rngs=nnx.Rngs(dropout=0)))
    assert set(np.unique(channels)) == {0, 2}
    assert (channels == channels[:, :1, :1]).all()
    elements = DeepLabV3(config.replace(aspp_dropout_prob=0.5), rngs=nnx.Rngs(0)).element_dropout
    dropped = np.asarray(elements(x, rngs=nnx.Rngs(dropout=0)))
    assert set(np.unique(dropped)) == {0, 2}
    assert not (dropped == dropped[:, :1, :1]).all()
    head.eval()
    assert (head.channel_dropout(x) == x).all() and (head.element_dropout(x) == x).all()


@pytest.mark.parametrize("align_corners", [False, True])
def test_resizing_in_float32_is_not_left_to_the_default_of_a_device(align_corners):
    def resized(x):
        return adaptive_average_pool(resize_bilinear(x, (7, 9), align_corners=align_corners), 3)

    text = str(jax.make_jaxpr(resized)(jnp.zeros((1, 4, 5, 2))))
    assert text.count("dot_general") == text.count("HIGHEST") // 2 == 4
