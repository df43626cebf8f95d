"""MixUp and CutMix, on the device: each image of a batch is mixed with the one before it.

All of a batch is mixed in the same way, as in the original release. What is drawn is laid beside
the images, example by example, so that a batch in parts is mixed as the whole would be, and on
any number of devices as on one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

Batch = dict[str, Array]


def is_on(config: ml_collections.ConfigDict) -> bool:
    """Tells whether the experiment mixes its images."""
    return bool(config.augment.mixup or config.augment.cutmix)


def draw(batch: Batch, key: Array, config: ml_collections.ConfigDict) -> Batch:
    """Adds to a batch with what each example is mixed, and how.

    Either MixUp (arXiv 1710.09412) or CutMix (arXiv 1905.04899), by the toss of a coin where both
    are on. Source: `RandomMixup` and `RandomCutmix` of ml-cvnets `data/transforms/image_torch.py`.

    Args:
        batch: "image" [batch, height, width, channels] and "label" [batch].
        key: what all draws follow from.
        config: the experiment, with `augment.mixup` or `augment.cutmix` above 0.

    Returns:
        The batch and
        - "partner_image" and "partner_label", those of the example before, in a circle,
        - "box", int32 [batch, 4]: first row, first column, end row and end column of what the
          partner covers; empty for MixUp,
        - "opacity", float32 [batch]: share of the own image in each pixel outside the box,
        - "share", float32 [batch]: of the own label.
    """
    images, mixup, cutmix = batch["image"], config.augment.mixup, config.augment.cutmix
    count, height, width = images.shape[:3]
    coin, share_key, box_key = jax.random.split(key, 3)
    cut = jax.random.bernoulli(coin) if mixup and cutmix else jnp.asarray(bool(cutmix))
    # Beta(alpha, alpha) of the one chosen; 1 stands in for what is off and not drawn from.
    alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0)
    share = jax.random.beta(share_key, alpha, alpha)
    box = jnp.where(cut, _draw_box(box_key, 1 - share, height, width), 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    own = {
        "box": box,
        "opacity": jnp.where(cut, 1.0, share),
        "share": jnp.where(cut, 1 - area / (height * width), share),
    }
    return {
        **batch,
        "partner_image": jnp.roll(images, 1, axis=0),
        "partner_label": jnp.roll(batch["label"], 1, axis=0),
        **{name: jnp.broadcast_to(x, (count, *x.shape)) for name, x in own.items()},
    }


def _draw_box(key: Array, share: Array, height: int, width: int) -> Int[Array, "4"]:
    """Draws a box around a uniform centre, of `share` of the area before it is cut at the edges."""
    sides = jnp.asarray((height, width))
    centre = jax.random.randint(key, (2,), 0, sides)
    half = (0.5 * jnp.sqrt(share) * sides).astype(jnp.int32)
    return jnp.concatenate([jnp.maximum(centre - half, 0), jnp.minimum(centre + half, sides)])


def images(batch: Batch, pixels: Callable[[Array], Array]) -> Float[Array, "..."]:
    """Returns the pixels of a batch, mixed if `draw` has said how.

    Args:
        batch: with "image", in uint8.
        pixels: gives floating-point pixels of such images.
    """
    own = pixels(batch["image"])
    if "partner_image" not in batch:
        return own
    rows = jnp.arange(own.shape[1])[None, :, None]
    columns = jnp.arange(own.shape[2])[None, None, :]
    top, left, bottom, right = (batch["box"][:, side, None, None] for side in range(4))
    covered = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    opacity = jnp.where(covered, 0.0, batch["opacity"][:, None, None])[..., None]
    return opacity * own + (1 - opacity) * pixels(batch["partner_image"])


def losses(batch: Batch, loss: Callable[[Array], Array]) -> Float[Array, " batch"]:
    """Returns the loss of each example, with both labels by their shares if images are mixed.

    The cross entropy is linear in its target: this is that of the mixed one-hot vectors, which
    need not be laid out.

    Args:
        batch: with "label".
        loss: of each example with the labels it is given.
    """
    own = loss(batch["label"])
    if "partner_label" not in batch:
        return own
    return batch["share"] * own + (1 - batch["share"]) * loss(batch["partner_label"])
