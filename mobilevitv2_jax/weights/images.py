"""How pictures are brought in, in the words of each project: `preprocessor_config.json` and others.

The form between them is Hugging Face's: short side, central crop, filter, channel order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mobilevitv2_jax.errors import WeightsError

FILTERS = {"bilinear": 2, "bicubic": 3}
"""Filters that all projects have, with the numbers that Pillow and Hugging Face give them."""

_TIMM_SHARE = 0.888
"""timm's `crop_pct` of all MobileViTV2 but those of 384 pixels: 256 / 0.888 is 288 pixels."""


def rules(
    resize: int | tuple[int, int], crop: int | None, interpolation: str, flip: bool = False
) -> dict[str, Any]:
    """Returns the form of `preprocessor_config.json`.

    Args:
        resize: the short side, or height and width, in pixels.
        crop: side of the central square, in pixels; None keeps everything.
        interpolation: "bilinear" or "bicubic".
        flip: whether the model takes BGR.
    """
    if isinstance(resize, int):
        size, side = {"shortest_edge": resize}, resize
    else:
        size, side = {"height": resize[0], "width": resize[1]}, min(resize)
    return {
        "image_processor_type": "MobileViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": FILTERS[interpolation],
        "do_center_crop": crop is not None,
        "crop_size": {"height": crop or side, "width": crop or side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_flip_channel_order": flip,
    }


def from_timm(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rules of a `pretrained_cfg`.

    Raises:
        WeightsError: for a rule that no processor here has.
    """
    crop = values.get("input_size", (3, 256, 256))[1]
    kind, mode = values.get("interpolation", "bicubic"), values.get("crop_mode", "center")
    if kind not in FILTERS or mode != "center":
        raise WeightsError(
            "timm's pretrained_cfg must have interpolation bilinear or bicubic and crop_mode "
            f"center, got {kind!r} and {mode!r}"
        )
    found = rules(math.floor(crop / values.get("crop_pct", _TIMM_SHARE)), crop, kind)
    mean, deviation = list(values.get("mean", (0, 0, 0))), list(values.get("std", (1, 1, 1)))
    if any(mean) or set(deviation) != {1}:
        found |= {"do_normalize": True, "image_mean": mean, "image_std": deviation}
    return found


def to_timm(images: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a `pretrained_cfg`; the channels must be in the order RGB.

    Raises:
        WeightsError: for a rule that timm cannot express.
    """
    resize, crop = _squares("timm", images)
    if crop is None:
        raise WeightsError("do_center_crop=False: timm always crops")
    normalize = images.get("do_normalize")
    return {
        "input_size": [3, crop, crop],
        "interpolation": _interpolation("timm", images),
        "crop_pct": _share(resize, crop),
        "crop_mode": "center",
        "mean": list(images["image_mean"]) if normalize else [0.0, 0.0, 0.0],
        "std": list(images["image_std"]) if normalize else [1.0, 1.0, 1.0],
    }


def to_cvnets(images: Mapping[str, Any], segmentation: bool) -> dict[str, Any]:
    """Returns the group `image_augmentation` of a config of ml-cvnets, for RGB.

    Raises:
        WeightsError: for a rule that it cannot express.
    """
    resize, crop = _squares("ml-cvnets", images)
    if images.get("do_normalize"):
        raise WeightsError("do_normalize=True: ml-cvnets takes images in [0, 1]")
    if segmentation and crop is not None:
        raise WeightsError(
            "do_center_crop=True: ml-cvnets resizes the images of a segmentation and does not crop"
        )
    cut = {"center_crop": {"enable": True, "size": crop}} if crop else {}
    interpolation = _interpolation("ml-cvnets", images)
    return {"resize": {"enable": True, "size": resize, "interpolation": interpolation}, **cut}


def _squares(name: str, images: Mapping[str, Any]) -> tuple[int, int | None]:
    """Returns the short side and the side of the crop, where the rules are as simple as that."""
    size, crop = images["size"], images["crop_size"]
    if not images["do_resize"] or set(size) != {"shortest_edge"}:
        raise WeightsError(f"size={size}: {name} resizes the short side")
    if not images["do_rescale"] or not math.isclose(images["rescale_factor"], 1 / 255):
        raise WeightsError(f"rescale_factor: {name} takes images in [0, 1], a 255th of their bytes")
    if not images["do_center_crop"]:
        return size["shortest_edge"], None
    if crop["height"] != crop["width"] or crop["height"] > size["shortest_edge"]:
        raise WeightsError(f"crop_size={crop}: {name} crops a square out of a larger image")
    return size["shortest_edge"], crop["height"]


def _interpolation(name: str, images: Mapping[str, Any]) -> str:
    for kind, number in FILTERS.items():
        if images["resample"] == number:
            return kind
    raise WeightsError(f"resample={images['resample']}: {name} is given bilinear or bicubic here")


def _share(resize: int, crop: int) -> float:
    """Returns the shortest `crop_pct` of which timm computes this short side again."""
    for digits in range(3, 12):
        share = math.floor(crop / resize * 10**digits) / 10**digits
        if math.floor(crop / share) == resize:
            return share
    raise WeightsError(f"no crop_pct of timm's leads from {crop} to {resize} pixels")
