"""Our classifier against timm's, under the rules of the original release: see `test_cases.py`.

And how far apart timm and Hugging Face are, on the same weights: the figures of `docs/peers.md`.
"""

import numpy as np
import pytest
from flax import nnx
from oracle.cases import RULES, WIDTHS, Case
from oracle.comparison import compiled, error, our_model, reference_outputs, timm, timm_model
from reference_torch import channels_first, channels_last, torch
from reference_weights import LABELS, reference_images

import mobilevitv2_jax as mv

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-5


@pytest.mark.parametrize("width", WIDTHS)
def test_the_key_table_is_the_state_dict_of_timm_at_every_width(width):
    name = f"mobilevitv2_{round(100 * width):03d}"
    theirs = timm.create_model(name, device="meta").state_dict()
    ours = mv.weights.state_dict(mv.create_model(name), "timm")
    shapes = {key: tuple(x.shape) for key, x in theirs.items()}
    assert {key: array.shape for key, array in ours.items()} == shapes


@pytest.mark.parametrize(("size", "stride"), [((257, 193), 32), ((96, 160), 16)], ids=str)
def test_the_feature_maps_are_those_of_timms_features_only(size, stride):
    """Tolerance: 1e-5 of the largest absolute reference value."""
    whole = timm_model(0.5, stride).state_dict()
    theirs = timm.create_model("mobilevitv2_050", features_only=True, output_stride=stride).eval()
    arrays = {
        key.replace("stages.", "stages_", 1): x
        for key, x in whole.items()
        if not key.startswith("head.")
    }
    theirs.load_state_dict(arrays)
    images = reference_images(size)
    with torch.no_grad():
        reference = [channels_last(x) for x in theirs(channels_first(images))]
    fields = {"width_multiplier": 0.5, "output_stride": stride, "num_labels": LABELS}
    model = our_model("classification", **fields, **RULES["timm"])
    maps = compiled(model, output_hidden_states=True)(images).hidden_states
    assert theirs.feature_info.channels() == list(model.config.stage_channels)
    assert theirs.feature_info.reduction() == [2, 4, *{32: (8, 16, 32), 16: (8, 16, 16)}[stride]]
    errors = [error(x, y) for x, y in zip(maps, reference, strict=True)]
    assert max(errors) <= TOLERANCE, errors


def test_our_defaults_are_the_rules_of_timm():
    config = mv.MobileViTV2Config()
    assert {name: getattr(config, name) for name in RULES["timm"]} == RULES["timm"]


def test_classifier_dropout_is_timms_drop_rate():
    """Both drop pooled features before the classifier, in training mode only.

    Tolerance: 6 standard errors of the mean of 4096 draws; 5 % of the standard deviation, on
    average over 10 logits, whose own sampling error is 1 %.
    """
    theirs = timm_model(0.5, drop_rate=0.3)
    ours = our_model(
        "classification",
        width_multiplier=0.5,
        num_labels=LABELS,
        classifier_dropout=True,
        classifier_dropout_prob=0.3,
    )
    pooled = np.random.RandomState(0).normal(size=(1, 256)).astype(np.float32)
    expected = np.asarray(ours.classifier(ours.dropout(pooled)))[0]
    repeated = np.repeat(pooled, 4096, axis=0)
    ours.dropout.deterministic = False
    our_draws = np.asarray(ours.classifier(ours.dropout(repeated, rngs=nnx.Rngs(0))))
    theirs.head.drop.train()
    torch.manual_seed(0)
    with torch.no_grad():
        their_draws = theirs.head(torch.from_numpy(repeated[:, :, None, None])).numpy()
    for draws in (our_draws, their_draws):
        standard_error = draws.std(0) / np.sqrt(len(draws))
        assert (np.abs(draws.mean(0) - expected) <= 6 * standard_error).all()
    assert abs((our_draws.std(0) / their_draws.std(0)).mean() - 1) < 0.05


# Size, output stride, and the largest difference of the logits over the largest logit.
DIFFERENCES = [
    ((256, 256), 32, 0.0),
    ((256, 256), 16, 0.467),
    ((256, 256), 8, 0.422),
    ((224, 224), 32, 0.436),
    ((240, 240), 32, 0.286),
    ((288, 288), 32, 0.294),
    ((200, 264), 32, 0.452),
    ((257, 193), 32, 0.385),
]


@pytest.mark.parametrize(("size", "stride", "difference"), DIFFERENCES, ids=str)
def test_timm_and_hugging_face_differ_as_docs_peers_says(size, stride, difference):
    """Width 1.0, reference weights. Tolerance: half a unit of the last printed figure."""
    peers = ("huggingface", "timm")
    cases = (Case(1.0, size, stride, peer, "classification") for peer in peers)
    theirs, timms = (reference_outputs(case)["logits"] for case in cases)
    assert error(theirs, timms) == pytest.approx(difference, abs=0.0005 if difference else 2e-6)
