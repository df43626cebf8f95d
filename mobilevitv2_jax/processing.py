"""From pictures to arrays that the models take, and from their outputs to maps of classes.

The interface, the file and the numbers are those of Hugging Face's `MobileViTImageProcessor`; its
Pillow backend is equal bit for bit. Arrays are channels last (NHWC). NumPy and Pillow only.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mobilevitv2_jax.errors import ImageError
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.images import center_crop, rescale, resize, to_array, to_map
from mobilevitv2_jax.models.config import names_unknown_arguments, nearest
from mobilevitv2_jax.models.interpolation import resize_rows

FILE = "preprocessor_config.json"

_SIZES = ({"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"height", "width"})

# What Hugging Face writes and its MobileViT processor does not read: kept and written back.
_HOUSEKEEPING = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "_processor_class",
        "data_format",
        "input_data_format",
        "default_to_square",
        "do_pad",
        "device",
        "return_tensors",
        "disable_grouping",
    }
)


class BatchFeature(dict):
    """What a processor returns: a dict whose entries are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}, only {', '.join(self)}") from None


@names_unknown_arguments
@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileViTImageProcessor:
    """Resizes, crops and scales pictures, and flips their channels, as the weights want it.

    The defaults are those of Hugging Face's class, with which no published weights were trained:
    `from_pretrained` reads what belongs to the weights.

    Attributes:
        do_resize: resize to `size`.
        size: {"shortest_edge": s} keeps the aspect, and {"shortest_edge": s, "longest_edge": l},
            too, with the long side at most l; {"height": h, "width": w} does not. An integer is
            the shortest edge, a pair height and width.
        resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic,
            4 box, 5 Hamming.
        do_center_crop: cut the centre out, filled up with zeros where it is too small.
        crop_size: {"height": h, "width": w}; an integer is both.
        do_rescale: multiply by `rescale_factor`.
        rescale_factor: 1/255 leads to [0, 1].
        do_normalize: subtract `image_mean` and divide by `image_std`, in RGB. Hugging Face's class
            takes this argument and does nothing then.
        image_mean: of each channel, or of all.
        image_std: of each channel, or of all.
        do_flip_channel_order: from RGB to BGR: see `docs/peers.md`.
        do_reduce_labels: of segmentation maps: 0 becomes 255, and every other class one less.
        do_convert_rgb: False refuses what is not RGB; everything becomes RGB otherwise.
        unknown: other entries of the file, without effect here.

    Raises:
        TypeError: for an argument that does not exist, naming the nearest one.
        ValueError: for a value that is not allowed.
    """

    do_resize: bool = True
    size: Any = dataclasses.field(default_factory=lambda: {"shortest_edge": 224})
    resample: int = 3
    do_center_crop: bool = True
    crop_size: Any = 256
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool | None = None
    image_mean: Any = (0.5, 0.5, 0.5)
    image_std: Any = (0.5, 0.5, 0.5)
    do_flip_channel_order: bool = True
    do_reduce_labels: bool = False
    do_convert_rgb: bool | None = None
    unknown: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is None:  # as in Hugging Face, None is the default
                object.__setattr__(self, field.name, _default(field))
            if field.name.startswith("do_") and getattr(self, field.name) not in (
                None,
                True,
                False,
            ):
                _fail(field.name, "True or False", getattr(self, field.name))
        object.__setattr__(self, "size", _size("size", self.size, ("shortest_edge",)))
        object.__setattr__(
            self, "crop_size", _size("crop_size", self.crop_size, ("height", "width"))
        )
        if set(self.crop_size) != {"height", "width"}:
            _fail("crop_size", "a height and a width", self.crop_size)
        if self.resample not in range(6):
            _fail("resample", "one of Pillow's filters, 0 to 5", self.resample)
        object.__setattr__(self, "resample", int(self.resample))
        if not isinstance(self.rescale_factor, numbers.Real):
            _fail("rescale_factor", "a number", self.rescale_factor)
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            values = tuple(value) if isinstance(value, Iterable) else (value,) * 3
            if len(values) != 3 or not all(isinstance(x, numbers.Real) for x in values):
                _fail(name, "a number, or one for each of three channels", value)
            object.__setattr__(self, name, values)
        if 0 in self.image_std:
            _fail("image_std", "different from 0", self.image_std)

    # ---- Pictures in ---------------------------------------------------------------------

    def __call__(
        self,
        images: Any,
        segmentation_maps: Any = None,
        *,
        return_tensors: str | None = None,
        data_format: str | None = None,
        input_data_format: str | None = None,
        **changes: Any,
    ) -> BatchFeature:
        """Prepares pictures for the model.

        Args:
            images: one or a list of: paths, images of Pillow's, arrays [height, width, channels]
                (`images.to_array` says which); or an array of images.
            segmentation_maps: their maps of classes, likewise: resized by the nearest neighbour,
                and not scaled.
            return_tensors: "np" or "jax"; by default "np", or a list where sizes differ.
            data_format: "channels_last", there is no other.
            input_data_format: of arrays: "channels_last", which is assumed where it can be, or
                "channels_first".
            **changes: fields that are to differ this time.

        Returns:
            "pixel_values" [batch, height, width, 3], float32 in [0, 1] if nothing else is asked
            for; with maps also "labels" [batch, height, width], int64.

        Raises:
            ImageError: if something is no picture.
            ValueError: if arrays of different sizes are to be one, or for an unknown choice.
        """
        if changes:
            return dataclasses.replace(self, **changes)(
                images,
                segmentation_maps,
                return_tensors=return_tensors,
                data_format=data_format,
                input_data_format=input_data_format,
            )
        if data_format not in (None, "channels_last"):
            raise ValueError(
                f'data_format must be "channels_last", got {data_format!r}: arrays are channels '
                "last here; transpose(0, 3, 1, 2) gives the other layout"
            )
        listed = _as_list(images, 3)
        pictures = [to_array(image, input_data_format) for image in listed]
        if self.do_convert_rgb is False and not all(map(_is_rgb, listed)):
            raise ImageError("do_convert_rgb=False takes images in RGB alone")
        data = {"pixel_values": [self._prepare(picture) for picture in pictures]}
        if segmentation_maps is not None:
            maps = [to_map(classes) for classes in _as_list(segmentation_maps, 2)]
            if len(maps) != len(pictures):
                raise ValueError(
                    f"there must be one map for each image, got {len(maps)} for {len(pictures)}"
                )
            data["labels"] = [self._prepare_map(classes) for classes in maps]
        return BatchFeature({name: _join(x, return_tensors) for name, x in data.items()})

    preprocess = __call__

    def _prepare(self, picture: np.ndarray) -> np.ndarray:
        """Returns one picture as the model takes it."""
        if self.do_resize:
            picture = resize(picture, self.size, self.resample)
        if self.do_center_crop:
            picture = center_crop(picture, (self.crop_size["height"], self.crop_size["width"]))
        if np.issubdtype(picture.dtype, np.floating):
            picture = picture.astype(np.float32)  # in [0, 1] already
        elif self.do_rescale:
            picture = rescale(picture, self.rescale_factor)
        if self.do_normalize:
            mean, deviation = np.float32(self.image_mean), np.float32(self.image_std)
            picture = (picture.astype(np.float32) - mean) / deviation
        return picture[..., ::-1] if self.do_flip_channel_order else picture

    def _prepare_map(self, classes: np.ndarray) -> np.ndarray:
        if self.do_reduce_labels:
            # In bytes 0 - 1 is 255; what was void (255) stays it.
            classes = np.where(classes == 255, classes, classes - np.uint8(1))
        if self.do_resize:
            classes = resize(classes, self.size, Image.Resampling.NEAREST)
        if self.do_center_crop:
            classes = center_crop(classes, (self.crop_size["height"], self.crop_size["width"]))
        return classes.astype(np.int64)

    # ---- Outputs -------------------------------------------------------------------------

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Iterable[Sequence[int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Any]:
        """Returns the class of every pixel, upsampled as Hugging Face does.

        Args:
            outputs: of the model: with `logits` [batch, rows, columns, classes].
            target_sizes: height and width of each map; those of the logits by default.
            return_segmentation_scores: also return the upsampled logits.

        Returns:
            For each image its map, int64 [height, width]; or "segmentation" and
            "segmentation_scores" [height, width, classes].

        Raises:
            ValueError: if there is not one size for each image.
        """
        logits = np.asarray(outputs.logits)
        sizes = [logits.shape[1:3]] * len(logits)
        if target_sizes is not None:
            sizes = [(int(height), int(width)) for height, width in target_sizes]
        if len(sizes) != len(logits):
            raise ValueError(
                f"target_sizes must be one for each of {len(logits)} images, got {len(sizes)}"
            )
        if not return_segmentation_scores:
            return [_classes(x, size) for x, size in zip(logits, sizes, strict=True)]
        scores = [resize_rows(x, size, 0, size[0]) for x, size in zip(logits, sizes, strict=True)]
        return [BatchFeature(segmentation=x.argmax(-1), segmentation_scores=x) for x in scores]

    # ---- The file ------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of preprocessor_config.json."""
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "unknown" and getattr(self, field.name) is not None
        }
        own = {name: list(x) if isinstance(x, tuple) else x for name, x in own.items()}
        return {**self.unknown, "image_processor_type": "MobileViTImageProcessor", **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> MobileViTImageProcessor:
        """Reads the form of preprocessor_config.json; what is unknown is kept, and named once.

        Args:
            values: the entries of the file.
            **changes: fields in the place of the file's.

        Raises:
            ValueError: for a value that is not allowed.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"unknown"}
        unknown = {name: x for name, x in values.items() if name not in names}
        surprising = sorted(unknown.keys() - _HOUSEKEEPING)
        if surprising:
            warnings.warn(
                "unknown entries of the image processor kept and written back, without effect: "
                + ", ".join(f"{name}{nearest(name, names)}" for name in surprising),
                stacklevel=2,
            )
        known = {name: x for name, x in values.items() if name in names}
        return cls(**{**known, "unknown": unknown, **changes})

    @classmethod
    def from_pretrained(cls, path: epath.PathLike, **changes: Any) -> MobileViTImageProcessor:
        """Reads the processor that belongs to weights.

        Args:
            path: preprocessor_config.json, its directory, or whatever else the models'
                `from_pretrained` takes: the rules of timm, ml-cvnets and of runs are known.
            **changes: fields that are to differ.

        Raises:
            ImageError: if the file is not valid JSON.
            WeightsError: if there is none, and no weights either.
        """
        given = epath.Path(path)
        for file in (given, given / FILE, given / "model" / FILE):
            if _may_hold_rules(file.name) and file.is_file():
                return cls.from_dict(_read_json(file), **changes)
        from mobilevitv2_jax.weights import formats

        return cls.from_dict(formats.read(path).preprocessor, **changes)

    def save_pretrained(self, directory: epath.PathLike) -> None:
        """Writes preprocessor_config.json into `directory`, which is made if need be."""
        path = epath.Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / FILE, json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")


def _may_hold_rules(name: str) -> bool:
    """Returns whether a file has not the name of a list of shards, or of a model's config."""
    return name.endswith(".json") and not name.endswith(".index.json") and name != "config.json"


def _read_json(file: epath.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ImageError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ImageError(f"{file} must hold an object, got {type(values).__name__}")
    return values


def _default(field: dataclasses.Field) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def _fail(name: str, allowed: str, value: Any) -> None:
    raise ValueError(f"{name} must be {allowed}, got {value!r}")


def _size(name: str, value: Any, whole: tuple[str, ...]) -> dict[str, int]:
    """Returns a size by its names; a single number is that of `whole`."""
    if isinstance(value, Mapping):
        size = dict(value)
    elif isinstance(value, Sequence) and len(value) == 2:
        size = dict(zip(("height", "width"), value, strict=True))
    else:
        size = dict.fromkeys(whole, value)
    counts = all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in size.values())
    if set(size) not in _SIZES or not counts:
        _fail(
            name,
            "pixels: a number, height and width, or shortest_edge with or without longest_edge",
            value,
        )
    return size


def _as_list(images: Any, axes: int) -> list[Any]:
    """Returns a list of images of what is one, a list or an array of them."""
    if isinstance(images, list | tuple):
        return list(images)
    return list(images) if getattr(images, "ndim", 0) > axes else [images]


def _is_rgb(image: Any) -> bool:
    if isinstance(image, Image.Image):
        return image.mode == "RGB"
    return 3 in (np.shape(image)[:1] + np.shape(image)[-1:])


def _join(arrays: list[np.ndarray], kind: str | None) -> Any:
    if kind not in (None, "np", "jax"):
        raise ValueError(
            f'return_tensors must be "np" or "jax", got {kind!r}: torch.from_numpy(x.transpose('
            '0, 3, 1, 2)) makes a tensor of torch of "np"'
        )
    sizes = sorted({array.shape[:2] for array in arrays})
    if len(sizes) > 1:
        if kind is None:
            return [np.ascontiguousarray(array) for array in arrays]
        raise ValueError(
            f"images of sizes {', '.join(map(str, sizes))} are not one array: crop them"
        )
    if kind != "jax":
        return np.stack(arrays)
    import jax.numpy as jnp  # here, for loaders of data load no jax

    return jnp.asarray(np.stack(arrays))


_BAND = 1 << 24
"""Numbers that are upsampled at a time: 64 MB, where 150 classes of a photograph would be 7 GB."""


def _classes(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the best class of every pixel of logits that are upsampled to `size`."""
    rows = max(1, _BAND // (size[1] * logits.shape[-1]))
    bands = [
        resize_rows(logits, size, top, min(top + rows, size[0])).argmax(-1)
        for top in range(0, size[0], rows)
    ]
    return np.concatenate(bands)
