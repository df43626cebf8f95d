"""From stored images to what a model is given."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Num


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Scales images to [0, 1], and further as the weights may ask for.

    The published weights of ml-cvnets take RGB in [0, 1] and nothing more.

    Attributes:
        channel_order: "rgb" or "bgr", of the result.
        mean: of each channel in RGB order, subtracted from values in [0, 1].
        std: of each channel in RGB order, by which the difference is divided.
    """

    channel_order: str = "rgb"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> Pixels:
        """Reads `config.data`."""
        group = config.data
        return cls(group.channel_order, tuple(group.mean), tuple(group.std))

    def __call__(self, images: Num[Array, "... 3"]) -> Float[Array, "... 3"]:
        """Returns float32 pixels of RGB images in [0, 255]; what changes nothing is left out."""
        pixels = images.astype(jnp.float32) / 255
        if any(self.mean):
            pixels = pixels - jnp.asarray(self.mean, jnp.float32)
        if any(scale != 1 for scale in self.std):
            pixels = pixels / jnp.asarray(self.std, jnp.float32)
        return pixels[..., ::-1] if self.channel_order == "bgr" else pixels
