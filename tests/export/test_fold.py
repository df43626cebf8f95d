"""The lean form computes what the model computes, block by block."""

import jax
import numpy as np
import pytest
from flax import nnx
from reference_weights import reference_weights

import mobilevitv2_jax as mv
from mobilevitv2_jax.export.fold import Shift, depthwise_layers, lean
from mobilevitv2_jax.models import attention, functional, heads, layers

CONFIG = mv.MobileViTV2Config(
    width_multiplier=0.25,
    n_attn_blocks=(1, 1, 1),
    base_attn_unit_dims=(16, 24, 32),
    num_labels=5,
    aspp_out_channels=16,
    atrous_rates=(2, 3, 4),
)

BLOCKS = {
    "pointwise": lambda rngs: layers.ConvNormAct(CONFIG, 8, 12, act=jax.nn.silu, rngs=rngs),
    "strided": lambda rngs: layers.ConvNormAct(CONFIG, 8, 12, kernel_size=3, stride=2, rngs=rngs),
    "dilated": lambda rngs: layers.ConvNormAct(CONFIG, 8, 12, kernel_size=3, dilation=2, rngs=rngs),
    "depthwise": lambda rngs: layers.ConvNormAct(
        CONFIG, 8, 8, kernel_size=3, stride=2, per_channel=True, rngs=rngs
    ),
    "inverted residual": lambda rngs: layers.InvertedResidual(CONFIG, 8, 8, rngs=rngs),
    "attention": lambda rngs: attention.MobileViTV2Block(CONFIG, 8, 16, layers=1, rngs=rngs),
    "DeepLabV3": lambda rngs: heads.DeepLabV3(CONFIG, rngs=rngs),
    "PSPNet": lambda rngs: heads.PSPNet(CONFIG, rngs=rngs),
}


def settled(module):
    """Returns a module with statistics and scales that matter, in evaluation mode."""
    arrays = functional.arrays(module)
    shapes = {path: array.shape for part in arrays for path, array in part.items()}
    drawn = reference_weights(
        {path.replace("variance", "running_var"): shape for path, shape in shapes.items()}
    )
    functional.update(
        module, {path: drawn[path.replace("variance", "running_var")] for path in shapes}
    )
    module.eval()
    return module


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_without_batch_norm_computes_the_same(name):
    block = settled(BLOCKS[name](nnx.Rngs(0)))
    folded = lean(block)
    channels = CONFIG.stage_channels[-1] if name in ("DeepLabV3", "PSPNet") else 8
    x = np.random.RandomState(0).normal(0, 1, (2, 8, 8, channels)).astype(np.float32)
    expected, found = (np.asarray(jax.jit(lambda m, x: m(x))(m, x)) for m in (block, folded))
    # Rounding in float32: the product with the scale is taken before the sum, and not after it.
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert not any(isinstance(m, layers.BatchNorm) for _, m in nnx.iter_modules(folded))
    assert any(isinstance(m, Shift) for _, m in nnx.iter_modules(folded))


def test_the_lean_form_is_a_copy_and_has_native_depthwise_convolutions():
    block = settled(BLOCKS["depthwise"](nnx.Rngs(0)))
    before = {path: np.asarray(x) for path, x in functional.arrays(block)[0].items()}
    folded = lean(block)
    assert depthwise_layers(block) == depthwise_layers(folded) == 1
    assert block.convolution.depthwise == "auto" and folded.convolution.depthwise == "convolution"
    assert isinstance(block.normalization, layers.BatchNorm)
    for path, x in functional.arrays(block)[0].items():
        assert np.array_equal(x, before[path]), path
