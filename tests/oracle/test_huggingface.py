"""Our model against Hugging Face's, live, with the weights taken over by `weights/names.py`.

Tolerance, where nothing else is said: 1e-5 of the largest absolute reference value, in float32
on both sides. Rounding alone moves Hugging Face's outputs by 5e-7 to 1e-6.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracle.comparison import compiled, error
from reference_torch import (
    channels_first,
    channels_last,
    huggingface,
    loss_of,
    run,
    state_of,
    torch,
    transformers,
)
from reference_weights import LABELS, SIZES, WIDTHS, reference_images, reference_labels

import mobilevitv2_jax as mv
from mobilevitv2_jax.models.backbone import pool
from mobilevitv2_jax.models.config import ACTIVATIONS
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.losses import classification_loss

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-5
SMALL = {"width_multiplier": 0.25, "num_labels": LABELS}


def pair(kind="ForImageClassification", *arguments, ours=None, **fields):
    """Returns Hugging Face's model and ours, in evaluation mode, with the same weights."""
    theirs = huggingface(kind, *arguments, **fields)
    config = mv.MobileViTV2Config(**{**fields, **(ours or {})})
    model = getattr(mv, f"MobileViTV2{kind}")(config, *arguments, rngs=Blank())
    mv.weights.load_state_dict(model, state_of(theirs))
    model.eval()
    return theirs, model


def compare(theirs, model, size, losses=False):
    """Returns the relative error of every output."""
    images = reference_images(size, model.config.num_channels)
    logits, pooled, maps = run(theirs, images)
    output = compiled(model, output_hidden_states=True)(images)
    errors = {"logits": error(output.logits, logits)}
    for stage, (x, y) in enumerate(zip(output.hidden_states, maps, strict=True), start=1):
        errors[f"stage {stage}"] = error(x, y)
    errors["pooled"] = error(pool(output.hidden_states[-1]), pooled)
    if losses:
        for problem_type, targets in reference_labels().items():
            ours = classification_loss(output.logits, jnp.asarray(targets), problem_type)
            errors[problem_type] = error(ours, loss_of(theirs, logits, problem_type, targets))
    return errors


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_all_outputs_agree_at_every_width(width, size, record_property):
    theirs, model = pair(width_multiplier=width, num_labels=LABELS)
    errors = compare(theirs, model, size, losses=True)
    record_property("largest relative error", f"{max(errors.values()):.1e}")
    assert max(errors.values()) <= TOLERANCE, errors


CHANGED = [
    {"num_channels": 4},
    {"num_channels": 1},
    {"expand_ratio": 3.0},
    {"expand_ratio": 1.5},
    {"conv_kernel_size": 5},
    {"conv_kernel_size": 1},
    {"layer_norm_eps": 1e-2},
    {"n_attn_blocks": (1, 2, 1)},
    {"base_attn_unit_dims": (64, 96, 128)},
    {"ffn_multiplier": 3},
    {"patch_size": 1},
    {"patch_size": 4},
    {"width_multiplier": 0.3},
    {"num_labels": 3},
    *({"hidden_act": name} for name in ACTIVATIONS if name != "swish"),
]


@pytest.mark.parametrize("changed", CHANGED, ids=str)
def test_each_field_has_its_effect(changed):
    theirs, model = pair(**{**SMALL, **changed})
    errors = compare(theirs, model, (128, 128))
    assert max(errors.values()) <= TOLERANCE, errors
    # and it has one: other shapes, or other outputs from the same weights
    other = huggingface(**SMALL)
    shapes = [{key: x.shape for key, x in model.state_dict().items()} for model in (theirs, other)]
    if shapes[0] == shapes[1] and changed != {"hidden_act": "silu"}:
        images = channels_first(reference_images((128, 128)))
        with torch.no_grad():
            assert error(other(images).logits, theirs(images).logits) > 1e-3


@pytest.mark.parametrize("output_stride", [16, 8])
def test_hugging_faces_dilation_rule_is_theirs(output_stride):
    theirs, model = pair(
        **SMALL, output_stride=output_stride, ours={"dilation_rule": "huggingface"}
    )
    errors = compare(theirs, model, (128, 128))
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("size", [(224, 224), (200, 264)], ids=str)
def test_hugging_faces_odd_size_rule_is_theirs(size):
    theirs, model = pair(**SMALL, ours={"odd_size_rule": "drop"})
    errors = compare(theirs, model, size)
    assert max(errors.values()) <= TOLERANCE, errors


def test_hugging_face_refuses_a_fractional_ffn_multiplier_and_ours_follows_the_same_formula():
    with pytest.raises(Exception, match="ffn_multiplier"):
        transformers.MobileViTV2Config(ffn_multiplier=1.5)
    model = nnx.eval_shape(
        lambda: mv.MobileViTV2Model(mv.MobileViTV2Config(ffn_multiplier=1.5), rngs=nnx.Rngs(0))
    )
    hidden = [stage[1].layers[0].feed_forward.up.kernel.shape[1] for stage in model.stages[2:]]
    assert hidden == [1.5 * d // 16 * 16 for d in (128, 192, 256)]


DRAWS = 4096


def dropout_pair(**fields):
    """Returns both modules' first attention layer of stage 3, in training mode, and its input."""
    theirs, model = pair(**SMALL, **fields)
    theirs = theirs.mobilevitv2.encoder.layer[2].transformer.layer[0].train()
    ours = model.backbone.stages[2][1].layers[0]
    x = np.random.RandomState(0).normal(size=(1, 6, 4, ours.attention.out.kernel.shape[0]))
    return theirs, ours, x.astype(np.float32)


def moments(draws):
    return draws.mean(0, dtype=np.float64), draws.std(0, dtype=np.float64)


@pytest.mark.parametrize(
    ("field", "ours_name", "theirs_name"),
    [("attn_dropout", "attention", "attention"), ("ffn_dropout", "feed_forward", "ffn")],
)
def test_dropout_has_the_moments_of_hugging_faces(field, ours_name, theirs_name):
    """Outputs are linear in what is dropped, so their mean is the output without dropout.

    Tolerances: the mean of 4096 draws lies within 6 standard errors of its expectation for each
    of 768 elements; standard deviations agree to 5 % on average, their own sampling error being
    some 1-3 % per element.
    """
    theirs, ours, x = dropout_pair(**{field: 0.4})
    ours, theirs = getattr(ours, ours_name), getattr(theirs, theirs_name)
    expected = np.asarray(ours(x))[0]
    ours.train()
    repeated = np.repeat(x, DRAWS, axis=0)
    our_mean, our_deviation = moments(np.asarray(ours(repeated, nnx.Rngs(dropout=0))))
    torch.manual_seed(0)
    with torch.no_grad():  # theirs is [batch, channels, pixels, patches]
        draws = theirs(torch.from_numpy(repeated.transpose(0, 3, 2, 1).copy()))
    their_mean, their_deviation = moments(draws.numpy().transpose(0, 3, 2, 1))

    assert our_deviation.min() > 0
    for mean, deviation in ((our_mean, our_deviation), (their_mean, their_deviation)):
        assert (np.abs(mean - expected) <= 6 * deviation / np.sqrt(DRAWS) + 1e-6).all()
    ratio = our_deviation / their_deviation
    assert abs(ratio.mean() - 1) < 0.05
    assert ratio.min() > 0.8 and ratio.max() < 1.25


def test_initializer_range_sets_the_standard_deviation_that_hugging_faces_does():
    """Tolerance: 5 standard errors of a standard deviation of n draws, value / sqrt(2 n)."""
    fields = {**SMALL, "initializer_range": 0.05}
    theirs = transformers.MobileViTV2ForImageClassification(
        transformers.MobileViTV2Config(**fields)
    )
    model = mv.MobileViTV2ForImageClassification(
        mv.MobileViTV2Config(**fields, initialization="huggingface"), rngs=nnx.Rngs(0)
    )
    ours, theirs = mv.weights.state_dict(model), state_of(theirs)
    assert ours.keys() == theirs.keys()
    for key in ours:
        if np.ptp(theirs[key]) == 0:
            assert np.array_equal(ours[key], theirs[key]), key
            continue
        for array in (ours[key], theirs[key]):
            deviation = np.sqrt(np.square(array).mean())
            assert abs(deviation / 0.05 - 1) < 5 / np.sqrt(2 * array.size), key


def structure(value):
    """Returns the shapes of a nested tuple of arrays, channels last."""
    if isinstance(value, tuple):
        return tuple(structure(item) for item in value)
    shape = tuple(value.shape)
    return (
        (shape[0], *shape[2:], shape[1])
        if isinstance(value, torch.Tensor) and len(shape) == 4
        else shape
    )


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_classifiers_tuple_is_hugging_faces(hidden, labelled):
    theirs, model = pair(**SMALL)
    images = reference_images((64, 64))
    labels = np.array([1, 2]) if labelled else None
    options = {"output_hidden_states": hidden, "return_dict": False}
    with torch.no_grad():
        reference = theirs(
            channels_first(images),
            labels=torch.from_numpy(labels) if labelled else None,
            **options,
        )
    assert structure(model(images, labels, **options)) == structure(reference)
    named = model(images, labels, output_hidden_states=hidden)
    their_named = theirs(
        channels_first(images),
        labels=torch.from_numpy(labels) if labelled else None,
        output_hidden_states=hidden,
    )
    assert named.keys() == list(their_named.keys())


@pytest.mark.parametrize("expand_output", [True, False])
@pytest.mark.parametrize("hidden", [False, True])
def test_the_backbones_outputs_are_hugging_faces(hidden, expand_output):
    theirs, model = pair("Model", expand_output, width_multiplier=0.25)
    images = reference_images((64, 64))
    with torch.no_grad():
        reference = theirs(channels_first(images), output_hidden_states=hidden)
        as_tuple = theirs(channels_first(images), output_hidden_states=hidden, return_dict=False)
    output = compiled(model, output_hidden_states=hidden)(images)
    assert output.keys() == list(reference.keys())
    assert structure(output.to_tuple()) == structure(as_tuple)
    last = channels_last(reference.last_hidden_state)
    assert error(output.last_hidden_state, last) <= TOLERANCE
    if expand_output:
        assert error(output.pooler_output, reference.pooler_output) <= TOLERANCE


@pytest.mark.parametrize("field", ["output_hidden_states", "return_dict"])
def test_output_switches_of_the_config_work_as_hugging_faces(field):
    value = field == "output_hidden_states"
    theirs, model = pair(**SMALL, **{field: value})
    images = reference_images((64, 64))
    with torch.no_grad():
        reference = theirs(channels_first(images))
    output = model(images)
    if field == "return_dict":
        assert type(output) is type(reference) is tuple
    else:
        assert len(output.hidden_states) == len(reference.hidden_states) == 5


def test_without_labels_the_logits_are_the_pooled_features():
    theirs, model = pair(width_multiplier=0.25, num_labels=0)
    errors = compare(theirs, model, (64, 64))
    assert max(errors.values()) <= TOLERANCE, errors
    assert model.classifier is None


@pytest.mark.parametrize(
    ("num_labels", "labels", "inferred"),
    [
        (1, np.array([0.5, -1.0], np.float32), "regression"),
        (10, np.array([3, 7]), "single_label_classification"),
        (10, np.array([3, 7], np.int32), "single_label_classification"),
        (10, np.array([3, -100]), "single_label_classification"),
        (10, np.eye(10, dtype=np.float32)[:2], "multi_label_classification"),
    ],
)
def test_the_problem_type_is_inferred_as_by_hugging_face(num_labels, labels, inferred):
    theirs, model = pair(width_multiplier=0.25, num_labels=num_labels)
    images = reference_images((64, 64))
    given = torch.from_numpy(labels)
    given = given if given.is_floating_point() else given.long()
    with torch.no_grad():
        reference = theirs(channels_first(images), labels=given).loss
    assert theirs.config.problem_type == inferred
    with jax.default_matmul_precision("highest"):
        loss = model(images, jnp.asarray(labels)).loss
    assert error(loss, reference) <= TOLERANCE
    assert model.config.problem_type is None


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_the_config_has_every_field_of_hugging_faces_with_its_default():
    theirs = transformers.MobileViTV2Config()
    ours = mv.MobileViTV2Config()
    names = {field.name for field in dataclasses.fields(type(theirs))}
    general = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    own = names - general
    assert own, "Hugging Face's config is no dataclass any more"
    wanted = {"num_labels", "id2label", "label2id", "problem_type"}
    wanted |= {"output_hidden_states", "return_dict"}
    for name in sorted((own | wanted) - {"model_type"}):
        assert plain(getattr(ours, name)) == plain(getattr(theirs, name)), name


CONFIG = {
    "num_channels": 4,
    "image_size": 192,
    "patch_size": 4,
    "expand_ratio": 3.0,
    "hidden_act": "gelu",
    "conv_kernel_size": 5,
    "output_stride": 16,
    "classifier_dropout_prob": 0.3,
    "initializer_range": 0.05,
    "layer_norm_eps": 1e-3,
    "aspp_out_channels": 64,
    "atrous_rates": (2, 4, 6),
    "aspp_dropout_prob": 0.2,
    "semantic_loss_ignore_index": 0,
    "n_attn_blocks": (1, 2, 1),
    "base_attn_unit_dims": (64, 96, 128),
    "width_multiplier": 0.75,
    "ffn_multiplier": 3,
    "attn_dropout": 0.1,
    "ffn_dropout": 0.2,
    "id2label": {0: "cat", 1: "dog", 2: "hen"},
    "label2id": {"cat": 0, "dog": 1, "hen": 2},
    "problem_type": "regression",
    "output_hidden_states": True,
}


def test_a_config_survives_the_way_from_hugging_face_to_us_and_back(tmp_path, recwarn):
    theirs = transformers.MobileViTV2Config(**CONFIG)
    theirs.save_pretrained(tmp_path / "theirs")
    recwarn.clear()
    ours = mv.MobileViTV2Config.from_pretrained(tmp_path / "theirs")
    assert not [str(w.message) for w in recwarn if "unknown" in str(w.message)]
    for name, value in CONFIG.items():
        assert plain(getattr(ours, name)) == plain(value), name
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.MobileViTV2Config.from_pretrained(tmp_path / "ours")
    for name, value in CONFIG.items():
        assert plain(getattr(again, name)) == plain(value), name
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    original = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert original.keys() <= written.keys()
    from_dict = mv.MobileViTV2Config.from_dict(theirs.to_dict())
    assert from_dict == ours


def test_their_defaults_are_ours_after_a_round_trip(tmp_path):
    transformers.MobileViTV2Config().save_pretrained(tmp_path)
    assert mv.MobileViTV2Config.from_pretrained(tmp_path) == mv.MobileViTV2Config()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_key_table_is_the_state_dict_of_hugging_face_at_every_width(width):
    with torch.device("meta"):
        theirs = transformers.MobileViTV2ForImageClassification(
            transformers.MobileViTV2Config(width_multiplier=width)
        )
    model = mv.MobileViTV2ForImageClassification(
        mv.MobileViTV2Config(width_multiplier=width), rngs=Blank()
    )
    ours = mv.weights.state_dict(model)
    shapes = {key: tuple(x.shape) for key, x in theirs.state_dict().items()}
    assert {key: array.shape for key, array in ours.items()} == shapes


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_the_key_table_is_the_state_dict_of_timm_and_so_are_the_logits(width):
    timm = pytest.importorskip("timm")
    name = f"mobilevitv2_{round(100 * width):03d}"
    _, model = pair(width_multiplier=width, num_labels=LABELS)
    theirs = timm.create_model(name, num_classes=LABELS).eval()
    arrays = mv.weights.state_dict(model, "timm")
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    images = reference_images((64, 64))
    with torch.no_grad():
        reference = theirs(channels_first(images))
    assert error(compiled(model)(images).logits, reference) <= TOLERANCE
