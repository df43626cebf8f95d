"""MobileViT-S, the first version, against Hugging Face's, live.

Tolerance: 1e-5 of the largest absolute logit, in float32 on both sides.
"""

import jax
import numpy as np
import pytest
from flax import nnx
from oracle.comparison import error
from reference_torch import channels_first, state_of, torch, transformers
from reference_weights import LABELS, reference_images, reference_weights, shapes_of

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.mobilevit import MobileViT
from mobilevitv2_jax.weights.mobilevit import load_state_dict

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def pair():
    """Returns Hugging Face's model and ours, with the same weights."""
    theirs = transformers.MobileViTForImageClassification(
        transformers.MobileViTConfig(num_labels=LABELS)
    ).eval()
    weights = reference_weights(shapes_of(theirs.state_dict()))
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
    ours = MobileViT(MobileViTV2Config(num_labels=LABELS), rngs=Blank())
    load_state_dict(ours, state_of(theirs))
    return theirs, ours


@pytest.mark.parametrize("size", [(256, 256), (192, 288)], ids=str)
def test_the_logits_of_the_first_version_are_hugging_faces(pair, size):
    """192 x 288 makes maps of 6 x 9 pixels, which the patches do not divide."""
    theirs, ours = pair
    images = reference_images(size)
    with torch.no_grad():
        expected = theirs(channels_first(images)).logits
    graph, state = nnx.split(ours)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)
    assert error(logits, expected) <= 1e-5


def test_the_first_version_refuses_other_weights_and_keeps_its_own(pair):
    theirs, ours = pair
    before = functional.arrays(ours)[0]["stem.convolution.kernel"]
    incomplete = state_of(theirs)
    del incomplete["mobilevit.conv_1x1_exp.convolution.weight"]
    with pytest.raises(WeightsError, match="1 missing"):
        load_state_dict(ours, incomplete)
    np.testing.assert_array_equal(functional.arrays(ours)[0]["stem.convolution.kernel"], before)
