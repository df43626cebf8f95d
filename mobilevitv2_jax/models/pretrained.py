"""What the models have in common with Hugging Face's: loading from and saving to a path."""

from __future__ import annotations

from typing import Any, Self

from etils import epath
from flax import nnx


class Pretrained(nnx.Module):
    """A model that can be read from, and written to, files of weights."""

    @classmethod
    def from_pretrained(cls, path: epath.PathLike, **options: Any) -> Self:
        """Returns a model with weights of Hugging Face, timm, ml-cvnets or a run of ours.

        Args:
            path: a directory, a file, or an identifier on the Hugging Face hub.
            **options: those of `weights.pretrained.load`: which checkpoint of a run, what to do
                with another number of classes, and fields of the config that are to differ.

        Returns:
            The model, in evaluation mode.
        """
        from mobilevitv2_jax.weights import pretrained

        return pretrained.from_pretrained(cls, path, **options)

    def save_pretrained(
        self, directory: epath.PathLike, format: str = "hf", processor: Any = None
    ) -> None:
        """Writes the model as Hugging Face ("hf"), timm or ml-cvnets ("cvnets") read it.

        Args:
            directory: where to; made if need be.
            format: whose.
            processor: how the model's images are brought in: written beside it, and without it
                RGB is assumed where the format does not say.
        """
        from mobilevitv2_jax.weights import saving

        saving.save_pretrained(self, directory, format, processor)
