"""The optimizer: an optax transformation without a learning rate.

The learning rate is applied in the training step, as a function of the state's own step:
optax's count stands still when a step is skipped, and would let the schedule slip.
"""

from __future__ import annotations

import jax
import ml_collections
import optax

from mobilevitv2_jax.models.functional import Arrays

_BACKBONE = "backbone."
_STAGES = 5


def decay_mask(parameters: Arrays, decay_one_dimensional: bool) -> dict[str, bool]:
    """Returns which parameters are decayed: kernels, but no bias and no normalisation scale.

    Source: `no_decay_bn_filter_bias` of ml-cvnets `cvnets/misc/common.py`, which spares every
    one-dimensional parameter.
    """
    return {path: decay_one_dimensional or array.ndim > 1 for path, array in parameters.items()}


def learning_rate_scales(parameters: Arrays, config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns the factor of each parameter's learning rate: 0 where it is frozen.

    With `optimizer.layer_decay` below 1 every stage of the backbone learns so much slower than
    the one after it, and the stem, the slowest, slower than the first; heads have the full rate.
    """
    group = config.optimizer
    if group.freeze_backbone:
        return {path: float(not path.startswith(_BACKBONE)) for path in parameters}
    return {path: group.layer_decay ** _layers_above(path) for path in parameters}


def _layers_above(path: str) -> int:
    """Returns how many layers a parameter is below the heads: stages count as one, and the stem."""
    if not path.startswith(_BACKBONE):
        return 0
    part, _, rest = path.removeprefix(_BACKBONE).partition(".")
    return _STAGES - int(rest.partition(".")[0]) if part == "stages" else _STAGES + 1


def hold_frozen(parameters: Arrays, config: ml_collections.ConfigDict) -> Arrays:
    """Returns the parameters, of which frozen ones ask for no gradient."""
    if not config.optimizer.freeze_backbone:
        return parameters
    return {
        path: jax.lax.stop_gradient(array) if path.startswith(_BACKBONE) else array
        for path, array in parameters.items()
    }


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns the direction of descent of `config.optimizer`, to be scaled by -learning rate."""
    group = config.optimizer
    decay = optax.add_decayed_weights(
        group.weight_decay, mask=lambda tree: decay_mask(tree, group.decay_one_dimensional)
    )
    if group.name == "sgd":
        # PyTorch's SGD adds the decay to the gradient, and so to the momentum.
        return optax.chain(decay, optax.trace(decay=group.momentum))
    adam = optax.scale_by_adam(b1=group.betas[0], b2=group.betas[1], eps=group.epsilon)
    return optax.chain(adam, decay)


def clip_by_norm(gradients: Arrays, norm: jax.Array, limit: float) -> Arrays:
    """Scales the gradients so that their global norm, which is `norm`, is at most `limit`."""
    if not limit:
        return gradients
    # The 1e-6 is that of torch.nn.utils.clip_grad_norm_.
    scale = jax.numpy.minimum(1.0, limit / (norm + 1e-6))
    return jax.tree.map(lambda gradient: gradient * scale, gradients)
