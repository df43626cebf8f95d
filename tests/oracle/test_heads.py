"""The heads that Hugging Face does not have, against PyTorch's own operators.

Tolerance: 1e-5 of the largest absolute reference value, in float32 on both sides.
"""

import jax
import numpy as np
import pytest
from oracle.comparison import error
from reference_torch import channels_first, channels_last, torch
from reference_weights import reference_weights, shapes_of

import mobilevitv2_jax as mv
from mobilevitv2_jax.models.initializers import Blank

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-5
FIELDS = {
    "width_multiplier": 0.5,
    "num_labels": 7,
    "n_attn_blocks": (1, 1, 1),
    "aspp_out_channels": 48,
    "segmentation_head": "pspnet",
}


def conv_norm_act(x, weights, name, padding=0):
    """Returns what a layer of ml-cvnets with BatchNorm and ReLU computes in evaluation mode."""
    x = torch.nn.functional.conv2d(x, weights[f"{name}.block.conv.weight"], padding=padding)
    mean, variance, scale, bias = (
        weights[f"{name}.block.norm.{part}"]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.relu(torch.nn.functional.batch_norm(x, mean, variance, scale, bias, eps=1e-5))


def pyramid(x, weights):
    """PSPNet's head as ml-cvnets' `pspnet_module.py` describes it, from its weights."""
    parts = [x]
    for index, bins in enumerate((1, 2, 3, 6)):
        pooled = torch.nn.functional.adaptive_avg_pool2d(x, bins)
        pooled = conv_norm_act(pooled, weights, f"seg_head.psp_layer.psp_branches.{index}.1")
        parts.append(
            torch.nn.functional.interpolate(
                pooled, size=x.shape[2:], mode="bilinear", align_corners=True
            )
        )
    x = conv_norm_act(torch.cat(parts, 1), weights, "seg_head.psp_layer.fusion.0", padding=1)
    name = "seg_head.classifier.block.conv"
    return torch.nn.functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


@pytest.fixture(scope="module")
def model():
    model = mv.MobileViTV2ForSemanticSegmentation(mv.MobileViTV2Config(**FIELDS), rngs=Blank())
    arrays = reference_weights(shapes_of(mv.weights.state_dict(model, "cvnets")))
    mv.weights.load_state_dict(model, arrays, "cvnets")
    model.eval()
    return model


@pytest.mark.parametrize("size", [(32, 32), (16, 24), (7, 5), (4, 3), (1, 1)], ids=str)
def test_pspnet_is_pyramid_pooling_of_maps_of_every_size(model, size):
    """Maps that the bins divide, that they do not, and that have fewer pixels than bins."""
    weights = {
        key: torch.from_numpy(x) for key, x in mv.weights.state_dict(model, "cvnets").items()
    }
    shape = (2, *size, model.config.stage_channels[-1])
    x = np.random.RandomState(0).normal(size=shape).astype(np.float32)
    theirs = channels_last(pyramid(channels_first(x), weights))
    with jax.default_matmul_precision("highest"):
        ours = model.segmentation_head(x)
    assert error(ours, theirs) <= TOLERANCE
