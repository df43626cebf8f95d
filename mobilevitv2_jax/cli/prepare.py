"""`mobilevitv2 prepare KIND …`: makes a TFDS data set of archives or folders of images."""

from __future__ import annotations

from collections.abc import Sequence

from mobilevitv2_jax.cli.verbs import dispatch

KINDS = {
    "imagenet": ("mobilevitv2_jax.cli.prepare_imagenet", "the original archives of ILSVRC2012"),
    "voc": ("mobilevitv2_jax.cli.prepare_voc", "Pascal VOC 2012 segmentation, with SBD and COCO"),
    "ade20k": ("mobilevitv2_jax.cli.prepare_ade20k", "ADE20K, scene parsing of 150 classes"),
    "folder": ("mobilevitv2_jax.cli.prepare_folder", "images in folders of classes, or in lists"),
}
"""What can be prepared, and the module whose `run(argv)` does it."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    return dispatch("mobilevitv2 prepare", KINDS, argv)
