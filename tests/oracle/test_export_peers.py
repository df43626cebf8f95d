"""What `mobilevitv2 bench` times of Hugging Face computes the same as ours."""

import numpy as np
import pytest
from flax import nnx
from reference_torch import transformers  # noqa: F401 # skips where it is missing

import mobilevitv2_jax as mv
from mobilevitv2_jax.export import peers

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("kind", ["ForImageClassification", "ForSemanticSegmentation"])
def test_hugging_face_s_model_has_the_weights_of_ours(kind):
    """Tolerance: 1e-5 of the largest logit, as for the models."""
    config = mv.MobileViTV2Config(
        width_multiplier=0.25, n_attn_blocks=(1, 1, 1), num_labels=5, aspp_out_channels=16
    )
    model = getattr(mv, f"MobileViTV2{kind}")(config, rngs=nnx.Rngs(0))
    model.eval()
    pixels = np.random.RandomState(0).uniform(size=(2, 64, 64, 3)).astype(np.float32)
    theirs = peers.huggingface(model, pixels, threads=1)["Hugging Face"]().numpy()
    ours = np.asarray(model(pixels).logits)
    ours = ours if ours.ndim == 2 else ours.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
