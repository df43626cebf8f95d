"""Our segmentation model against Hugging Face's, under its rules: see also `test_cases.py`.

Tolerance, where nothing else is said: 1e-5 of the largest absolute reference value, in float32
on both sides.
"""

import jax
import numpy as np
import pytest
from flax import nnx
from oracle.cases import RULES
from oracle.comparison import compiled, error, our_model
from reference_torch import channels_first, channels_last, huggingface, torch, transformers
from reference_weights import LABELS, reference_images

import mobilevitv2_jax as mv
from mobilevitv2_jax.models.initializers import Blank

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-5
SMALL = {
    "width_multiplier": 0.25,
    "num_labels": LABELS,
    "n_attn_blocks": (1, 1, 1),
    "aspp_out_channels": 64,
    "output_stride": 16,
}


def labels_of(size, ignored=255):
    """Returns classes with a band of ignored pixels, one batch of maps."""
    labels = np.random.RandomState(1).randint(0, LABELS, (2, *size))
    labels[:, : size[0] // 5] = ignored
    return labels


def their_run(fields, size, labels=None, **options):
    model = huggingface("ForSemanticSegmentation", **fields)
    given = None if labels is None else torch.from_numpy(labels)
    with torch.no_grad():
        return model(channels_first(reference_images(size)), labels=given, **options)


def our_run(fields, size, **options):
    model = our_model("segmentation", **fields, **RULES["huggingface"])
    return model, compiled(model, **options)(reference_images(size))


def check(fields, size, labels):
    """Compares logits, feature maps and loss; returns Hugging Face's output."""
    theirs = their_run(fields, size, labels, output_hidden_states=True)
    model, ours = our_run(fields, size, output_hidden_states=True)
    errors = {"logits": error(ours.logits, channels_last(theirs.logits))}
    for stage, (x, y) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True), 1):
        errors[f"stage {stage}"] = error(x, channels_last(y))
    with jax.default_matmul_precision("highest"):
        errors["loss"] = error(model.loss(ours.logits, labels), theirs.loss)
    assert ours.attentions is None and theirs.attentions is None
    assert max(errors.values()) <= TOLERANCE, errors
    return theirs


def test_the_published_head_agrees_at_its_output_stride():
    """21 classes, 512 channels, rates 6, 12 and 18."""
    fields = {"width_multiplier": 0.5, "num_labels": 21, "output_stride": 16}
    check(fields, (256, 256), labels_of((256, 256)))


@pytest.mark.parametrize("labelled", [(224, 224), (100, 75)], ids=str)
def test_logits_maps_and_loss_agree_for_labels_of_any_size(labelled):
    check(SMALL, (224, 224), labels_of(labelled))


@pytest.mark.parametrize("stride", [32, 8])
def test_odd_sizes_agree_at_every_output_stride(stride):
    check({**SMALL, "output_stride": stride}, (257, 193), labels_of((257, 193)))


CHANGED = [
    {"aspp_out_channels": 48},
    {"atrous_rates": (1, 2, 3)},
    {"output_stride": 8},
    {"semantic_loss_ignore_index": 3},
    {"num_labels": 2},
]


@pytest.mark.parametrize("changed", CHANGED, ids=str)
def test_each_field_of_the_head_has_its_effect(changed):
    size = (128, 128)
    labels = labels_of(size, changed.get("semantic_loss_ignore_index", 255))
    labels = np.where(labels == 255, 255, labels % changed.get("num_labels", LABELS))
    base = their_run(SMALL, size, None)
    other = check({**SMALL, **changed}, size, labels)
    if "semantic_loss_ignore_index" in changed:  # acts on the loss alone
        counted = torch.from_numpy(np.where(labels == 3, 0, labels))
        assert abs(their_run(SMALL, size, counted.numpy()).loss - other.loss) > 1e-3
    elif base.logits.shape == other.logits.shape:
        assert error(other.logits, base.logits) > 1e-3


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_tuple_and_the_named_output_are_laid_out_as_hugging_faces(hidden, labelled):
    labels = labels_of((64, 64)) if labelled else None
    theirs = huggingface("ForSemanticSegmentation", **SMALL)
    ours = our_model("segmentation", **SMALL, **RULES["huggingface"])
    images = reference_images((64, 64))
    given = None if labels is None else torch.from_numpy(labels)

    def their_shapes(return_dict):
        with torch.no_grad():
            output = theirs(
                channels_first(images),
                labels=given,
                output_hidden_states=hidden,
                return_dict=return_dict,
            )
        return output if return_dict else jax.tree.map(shape, output)

    def shape(x):
        x = x if isinstance(x, jax.ShapeDtypeStruct) or x.ndim != 4 else x.permute(0, 2, 3, 1)
        return "x".join(map(str, x.shape))

    def our_output(return_dict):
        return jax.eval_shape(
            lambda x: ours(x, labels, output_hidden_states=hidden, return_dict=return_dict), images
        )

    assert jax.tree.map(shape, our_output(False)) == their_shapes(False)
    assert our_output(True).keys() == list(their_shapes(True).keys())


def test_where_every_pixel_is_ignored_hugging_faces_loss_is_nan_and_ours_zero():
    labels = np.full((2, 64, 64), 255)
    theirs = their_run(SMALL, (64, 64), labels)
    model = our_model("segmentation", **SMALL, **RULES["huggingface"])
    assert torch.isnan(theirs.loss)
    assert model.loss(channels_last(theirs.logits), labels) == 0


def test_a_single_class_is_refused_at_construction_and_by_hugging_face_at_the_loss():
    fields = {**SMALL, "num_labels": 1}
    with pytest.raises(ValueError, match="greater than one"):
        their_run(fields, (64, 64), np.zeros((2, 64, 64), np.int64))
    with pytest.raises(ValueError, match="background and one class are num_labels=2"):
        our_model("segmentation", **fields)


DRAWS = 2048


@pytest.mark.parametrize("field", ["aspp_dropout_prob", "classifier_dropout_prob"])
def test_dropout_of_the_head_has_the_moments_of_hugging_faces(field):
    """The logits are linear in what is dropped: their mean is the output without dropout.

    Single elements and whole channels are told apart by the mean over the positions, which
    varies far less where positions are dropped independently. Tolerances: the mean of 2048
    draws lies within 6 standard errors of its expectation; standard deviations agree to 10 % on
    average over 160 logits (of positions) and 10 (of their mean), whose own sampling error is
    some 2 %.
    """
    others = {"aspp_dropout_prob": 0.0, "classifier_dropout_prob": 0.0, field: 0.4}
    fields = {**SMALL, **others}
    theirs = huggingface("ForSemanticSegmentation", **fields).segmentation_head
    (theirs.aspp.dropout if field == "aspp_dropout_prob" else theirs.dropout).train()
    ours = our_model("segmentation", **fields).segmentation_head
    x = np.random.RandomState(0).normal(size=(1, 4, 4, 128)).astype(np.float32)
    expected = np.asarray(ours(x), np.float64)[0]
    for dropout in (ours.element_dropout, ours.channel_dropout):
        dropout.deterministic = False
    repeated = np.repeat(x, DRAWS, axis=0)
    our_draws = np.asarray(ours(repeated, nnx.Rngs(dropout=0)), np.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        their_draws = channels_last(theirs([channels_first(repeated)])).astype(np.float64)

    deviations = []
    for draws in (our_draws, their_draws):
        deviation = draws.std(0)
        assert deviation.min() > 0
        assert (np.abs(draws.mean(0) - expected) <= 6 * deviation / np.sqrt(DRAWS) + 1e-5).all()
        deviations.append((deviation, draws.mean((1, 2)).std(0)))
    (ours_each, ours_mean), (theirs_each, theirs_mean) = deviations
    assert abs((ours_each / theirs_each).mean() - 1) < 0.1
    assert abs((ours_mean / theirs_mean).mean() - 1) < 0.1
    together = (ours_mean / ours_each.mean((0, 1))).mean()
    assert together < 0.5 if field == "aspp_dropout_prob" else together > 0.5


@pytest.mark.parametrize("width", [0.33, 0.5, 1.0, 1.9, 2.0])
def test_the_key_table_is_the_state_dict_of_hugging_face(width):
    fields = {"width_multiplier": width, "num_labels": 21}
    with torch.device("meta"):
        theirs = transformers.MobileViTV2ForSemanticSegmentation(
            transformers.MobileViTV2Config(**fields)
        )
    model = mv.MobileViTV2ForSemanticSegmentation(mv.MobileViTV2Config(**fields), rngs=Blank())
    ours = mv.weights.state_dict(model)
    assert len(ours) == 305
    shapes = {key: tuple(x.shape) for key, x in theirs.state_dict().items()}
    assert {key: array.shape for key, array in ours.items()} == shapes
