"""The model's configuration: every field of Hugging Face's `MobileViTV2Config`, and our switches.

Plain Python: importing this file loads neither jax nor numpy, so that configs can be read,
checked and written anywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from etils import epath

from mobilevitv2_jax.files import write_whole

T = TypeVar("T")

ACTIVATIONS = ("swish", "silu", "relu", "relu6", "gelu", "gelu_new", "hardswish", "sigmoid", "tanh")
DTYPES = ("float32", "bfloat16", "float16", "float64")
PROBLEM_TYPES = (
    "regression",
    "single_label_classification",
    "multi_label_classification",
)
WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Width multipliers of the original release (arXiv 2206.02680, table of models)."""

MODEL_TYPE = "mobilevitv2"

# Keys that Hugging Face writes into every config.json: kept and written back without a warning.
_HOUSEKEEPING = frozenset(
    {
        "_name_or_path",
        "architectures",
        "model_type",
        "torch_dtype",
        "transformers_version",
        "mlp_ratio",
    }
)


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the closest of `names`, or `""` where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def make_divisible(value: float, divisor: int = 8, minimum: int | None = None) -> int:
    """Rounds `value` half up to a multiple of `divisor`, never more than 10 % down.

    Source: `make_divisible` of ml-cvnets `utils/math_utils.py`; Hugging Face's is the same.
    """
    rounded = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def names_unknown_arguments(cls: type[T]) -> type[T]:
    """Makes a dataclass name the nearest field when it is given an argument it does not know."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    init = cls.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in names:
                raise TypeError(f"{cls.__name__} has no field {name!r}{nearest(name, names)}")
        init(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


@names_unknown_arguments
@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileViTV2Config:
    """Shape and behaviour of a MobileViTV2; immutable, checked when it is made.

    The first block has the fields, defaults and meanings of Hugging Face's
    `MobileViTV2Config`; the second has the switches this project adds, because the
    public implementations differ or because JAX needs them. `replace` makes a changed copy.

    Attributes:
        num_channels: channels of the input image.
        image_size: input size in pixels that summaries assume, and exports where no image
            processor says another; the model takes any.
        patch_size: side of the square patches that separable attention runs over, in pixels.
        expand_ratio: hidden width of the inverted residuals over their input width.
        hidden_act: activation of stem, inverted residuals, local convolution and feed-forward
            layers: a name, or a function of an array (which cannot be saved). The attention
            value and the segmentation head always use ReLU.
        conv_kernel_size: kernel of the depthwise local convolution in the attention blocks.
        output_stride: input size over the size of the last feature map: 32, 16 or 8.
        classifier_dropout_prob: dropout before the classifier. As in Hugging Face's model it acts
            in the segmentation head only: neither the published recipe nor the peers drop out
            before the image classifier. Set `classifier_dropout=True` to have it there too.
        initializer_range: standard deviation used by `initialization="huggingface"`.
        layer_norm_eps: epsilon of the GroupNorm layers in the attention blocks.
        aspp_out_channels: channels of the segmentation head, not scaled by the width.
        atrous_rates: dilation of the three 3x3 convolutions of the DeepLabV3 head.
        aspp_dropout_prob: dropout after the projection of the DeepLabV3 head.
        semantic_loss_ignore_index: label that the segmentation loss ignores.
        n_attn_blocks: attention layers in the blocks of stages 3, 4 and 5.
        base_attn_unit_dims: width of those attention layers before `width_multiplier`.
        width_multiplier: scales every channel count; 0.5 to 2.0 were released.
        ffn_multiplier: hidden width of the feed-forward layers over the attention width.
        attn_dropout: dropout on the context scores, after their softmax.
        ffn_dropout: dropout after the activation and after the second layer of the feed-forward.
        num_labels: number of classes; 0 makes the classifier return pooled features. Follows
            from `id2label` when that is given, and is 2 otherwise.
        id2label: class names by class index. `LABEL_0`, … by default.
        label2id: the inverse, derived when not given.
        problem_type: loss of the image classifier; None chooses by labels, as Hugging Face does.
        output_hidden_states: return the five feature maps by default.
        return_dict: return named outputs (True) or plain tuples (False) by default.

        dilation_rule: at output stride 16 and 8, "cvnets" also dilates the local convolutions of
            the attention blocks (the original, with which the weights were trained);
            "huggingface" does not.
        odd_size_rule: feature maps that the patch size does not divide are resized up
            ("resize": the original release and timm), cut and zero-filled ("drop": Hugging
            Face), or resized up and back to their own size ("resize_back": ours).
        initialization: "cvnets" draws weights as the original release effectively does;
            "huggingface" as theirs (`initializer_range`, BatchNorm scales included).
        classifier_dropout: apply `classifier_dropout_prob` in the image classifier too.
        segmentation_head: "deeplabv3", or "pspnet", which Hugging Face does not have.
        stochastic_depth: probability of leaving out, for an image in training, what the last
            residual branch adds; it grows in equal steps from 0 for the first (arXiv 1603.09382).
        auxiliary_head: give the segmentation model a second head on stage 4, for training only.
        align_corners: how the segmentation loss upsamples the logits to the size of the labels:
            False as Hugging Face, True as the original release.
        dtype: type of the computation: "float32", "bfloat16", "float16" or "float64". Normalisation
            statistics, softmax and losses are always computed in float32 or better.
        param_dtype: type of the parameters.
        batch_norm_group_size: images over which BatchNorm takes its training statistics; None
            is the whole batch. The recipe of the original release used 128.
        depthwise: how depthwise convolutions are expressed: "shifts" (multiply-adds over
            shifted arrays: fast on CPU), "convolution" (fast on TPU and GPU), or "auto", which
            chooses when the program is compiled for its platform.
        pointwise: how 1x1 convolutions are expressed: "product" (of matrices: fast on CPU and GPU),
            "convolution" (less memory traffic on TPU), or "auto", which chooses as `depthwise`.
        gradients: of depthwise shifts and normalisations: "written" out, for fewer passes over
            memory, or "derived" by differentiation, for comparison.
        rematerialize: keep only the inputs of the backbone's blocks for the gradient and compute
            what is inside them once more: less memory, more time.

    Raises:
        TypeError: for a field that does not exist, naming the nearest one.
        ValueError: for a value out of range, naming the field, what is allowed and the value.
    """

    num_channels: int = 3
    image_size: int = 256
    patch_size: int = 2
    expand_ratio: float = 2.0
    hidden_act: str | Callable = "swish"
    conv_kernel_size: int = 3
    output_stride: int = 32
    classifier_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    aspp_out_channels: int = 512
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    aspp_dropout_prob: float = 0.1
    semantic_loss_ignore_index: int = 255
    n_attn_blocks: tuple[int, ...] = (2, 4, 3)
    base_attn_unit_dims: tuple[int, ...] = (128, 192, 256)
    width_multiplier: float = 1.0
    ffn_multiplier: float = 2
    attn_dropout: float = 0.0
    ffn_dropout: float = 0.0
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    label2id: Mapping[str, int] | None = None
    problem_type: str | None = None
    output_hidden_states: bool = False
    return_dict: bool = True

    dilation_rule: str = "cvnets"
    odd_size_rule: str = "resize"
    initialization: str = "cvnets"
    classifier_dropout: bool = False
    stochastic_depth: float = 0.0
    segmentation_head: str = "deeplabv3"
    auxiliary_head: bool = False
    align_corners: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    batch_norm_group_size: int | None = None
    depthwise: str = "auto"
    pointwise: str = "auto"
    gradients: str = "written"
    rematerialize: bool = False

    unknown: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    """Keys of a config.json that are not ours: kept, and written back by `save_pretrained`."""

    def __post_init__(self) -> None:
        for name in ("atrous_rates", "n_attn_blocks", "base_attn_unit_dims"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        # Hugging Face's config refuses a file with 2.0 or 2 in the other's place.
        if isinstance(self.ffn_multiplier, float) and self.ffn_multiplier.is_integer():
            object.__setattr__(self, "ffn_multiplier", int(self.ffn_multiplier))
        if type(self.expand_ratio) is int:
            object.__setattr__(self, "expand_ratio", float(self.expand_ratio))
        self._resolve_labels()
        _validate(self)

    def _resolve_labels(self) -> None:
        if self.id2label is not None:
            id2label = {int(index): str(label) for index, label in self.id2label.items()}
            if sorted(id2label) != list(range(len(id2label))):
                raise ValueError(
                    f"id2label must name the classes 0 to {len(id2label) - 1}, got {id2label!r}"
                )
            if self.num_labels is not None and self.num_labels != len(id2label):
                raise ValueError(
                    f"num_labels must equal the length of id2label, which is {len(id2label)}, "
                    f"got {self.num_labels}"
                )
            object.__setattr__(self, "num_labels", len(id2label))
        else:
            if self.num_labels is None:
                object.__setattr__(self, "num_labels", 2)
            _require_integer(self, "num_labels", minimum=0)
            id2label = {index: f"LABEL_{index}" for index in range(self.num_labels or 0)}
        object.__setattr__(self, "id2label", id2label)
        if self.label2id is None:
            object.__setattr__(self, "label2id", {name: index for index, name in id2label.items()})
        else:
            object.__setattr__(
                self, "label2id", {str(name): int(index) for name, index in self.label2id.items()}
            )

    @property
    def stem_channels(self) -> int:
        """Channels of the stem; the only ones that are clipped (16 to 64)."""
        return make_divisible(min(max(32 * self.width_multiplier, 16), 64), 8, 16)

    @property
    def stage_channels(self) -> tuple[int, int, int, int, int]:
        """Channels of the five feature maps, at strides 2, 4, 8, 16 and 32."""
        first = make_divisible(64 * self.width_multiplier, 16)
        second, third, fourth, fifth = (
            make_divisible(base * self.width_multiplier, 8) for base in (128, 256, 384, 512)
        )
        return first, second, third, fourth, fifth

    @property
    def attention_channels(self) -> tuple[int, ...]:
        """Width of the attention layers of stages 3, 4 and 5."""
        return tuple(
            make_divisible(base * self.width_multiplier, 8) for base in self.base_attn_unit_dims
        )

    @property
    def is_regression(self) -> bool:
        """Whether the outputs of an image classifier are values, as its loss takes them."""
        return self.problem_type == "regression" or (
            self.problem_type is None and self.num_labels == 1
        )

    def replace(self, **changes: Any) -> MobileViTV2Config:
        """Returns a copy with `changes`; labels are derived anew when their number changes."""
        if changes.keys() & {"num_labels", "id2label"}:
            changes = {"num_labels": None, "id2label": None, "label2id": None, **changes}
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: Hugging Face's keys, ours, and the unknown ones.

        Raises:
            ValueError: if `hidden_act` is a function, which JSON cannot hold.
        """
        if callable(self.hidden_act):
            raise ValueError(
                f"hidden_act must be a name to be saved, one of {', '.join(ACTIVATIONS)}; "
                f"got the function {self.hidden_act!r}"
            )
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("unknown", "num_labels")
        }
        own["id2label"] = {str(index): label for index, label in (self.id2label or {}).items()}
        own = {
            key: list(value) if isinstance(value, tuple) else value for key, value in own.items()
        }
        return {**self.unknown, "model_type": MODEL_TYPE, **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MobileViTV2Config:
        """Reads the JSON form, Hugging Face's or ours.

        Keys that are not fields are kept in `unknown` and named in one warning.

        Raises:
            ValueError: if `model_type` is another model's, or a value is out of range.
        """
        model_type = values.get("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise ValueError(f"model_type must be {MODEL_TYPE!r}, got {model_type!r}")
        names = {field.name for field in dataclasses.fields(cls)} - {"unknown"}
        if "param_dtype" not in values:
            # In a file of Hugging Face's own, "dtype" tells how the weights are stored.
            names -= {"dtype"}
        known = {key: value for key, value in values.items() if key in names}
        unknown = {key: value for key, value in values.items() if key not in names}
        surprising = sorted(unknown.keys() - _HOUSEKEEPING - {"dtype"})
        if surprising:
            warnings.warn(
                "unknown keys kept and written back, without effect: "
                + ", ".join(f"{key}{nearest(key, names)}" for key in surprising),
                stacklevel=2,
            )
        unknown.pop("model_type", None)
        return cls(**known, unknown=unknown)

    @classmethod
    def from_pretrained(cls, path: epath.PathLike) -> MobileViTV2Config:
        """Reads `config.json`, or the one in the directory `path`."""
        file = epath.Path(path)
        if file.is_dir():
            file = file / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"no model configuration at {file}")
        try:
            values = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from None
        return cls.from_dict(values)

    def save_pretrained(self, directory: epath.PathLike) -> None:
        """Writes `config.json` into `directory`, which is made if need be."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        path = epath.Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / "config.json", text)


def _fail(name: str, allowed: str, value: Any) -> None:
    raise ValueError(f"{name} must be {allowed}, got {value!r}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_integer(config: MobileViTV2Config, name: str, minimum: int = 1) -> None:
    value = getattr(config, name)
    if not _is_integer(value) or value < minimum:
        _fail(name, f"an integer of at least {minimum}", value)


def _validate(config: MobileViTV2Config) -> None:
    for name in ("num_channels", "image_size", "patch_size", "aspp_out_channels"):
        _require_integer(config, name)
    _require_integer(config, "conv_kernel_size")
    if config.conv_kernel_size % 2 != 1:
        _fail("conv_kernel_size", "an odd integer", config.conv_kernel_size)
    if not _is_integer(config.semantic_loss_ignore_index):
        _fail("semantic_loss_ignore_index", "an integer", config.semantic_loss_ignore_index)
    if config.output_stride not in (8, 16, 32):
        _fail("output_stride", "8, 16 or 32", config.output_stride)
    for name in ("width_multiplier", "expand_ratio", "ffn_multiplier", "layer_norm_eps"):
        value = getattr(config, name)
        if not _is_number(value) or not 0 < value < float("inf"):
            _fail(name, "a positive number", value)
    if not _is_number(config.initializer_range) or config.initializer_range < 0:
        _fail("initializer_range", "a number of at least 0", config.initializer_range)
    for name in (
        "classifier_dropout_prob",
        "aspp_dropout_prob",
        "attn_dropout",
        "ffn_dropout",
        "stochastic_depth",
    ):
        value = getattr(config, name)
        if not _is_number(value) or not 0 <= value < 1:
            _fail(name, "a probability in [0, 1)", value)
    for name in ("atrous_rates", "n_attn_blocks", "base_attn_unit_dims"):
        value = getattr(config, name)
        whole = isinstance(value, tuple) and all(_is_integer(item) and item > 0 for item in value)
        if not whole or len(value) != 3:
            _fail(name, "three positive integers", value)
    for name in (
        "output_hidden_states",
        "return_dict",
        "classifier_dropout",
        "auxiliary_head",
        "align_corners",
        "rematerialize",
    ):
        if not isinstance(getattr(config, name), bool):
            _fail(name, "True or False", getattr(config, name))
    choices: dict[str, tuple[str | None, ...]] = {
        "problem_type": (None, *PROBLEM_TYPES),
        "dilation_rule": ("cvnets", "huggingface"),
        "odd_size_rule": ("resize", "drop", "resize_back"),
        "initialization": ("cvnets", "huggingface"),
        "segmentation_head": ("deeplabv3", "pspnet"),
        "dtype": DTYPES,
        "param_dtype": DTYPES,
        "depthwise": ("auto", "shifts", "convolution"),
        "pointwise": ("auto", "product", "convolution"),
        "gradients": ("written", "derived"),
    }
    if not callable(config.hidden_act):
        choices["hidden_act"] = ACTIVATIONS
    for name, allowed in choices.items():
        value = getattr(config, name)
        # A type such as jnp.bfloat16 may equal its name, and cannot be written to a file.
        if not isinstance(value, str | None) or value not in allowed:
            words = [item for item in allowed if item]
            hint = nearest(value, words) if isinstance(value, str) else ""
            raise ValueError(
                f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}{hint}"
            )
    if config.batch_norm_group_size is not None:
        _require_integer(config, "batch_norm_group_size")
    if config.ffn_multiplier * min(config.attention_channels) < 16:
        wanted = f"at least {16 / min(config.attention_channels):.3g} for attention of this width"
        _fail("ffn_multiplier", wanted, config.ffn_multiplier)
    if config.segmentation_head == "pspnet" and config.stage_channels[-1] < 64:
        wanted = "deeplabv3 at this width: a pspnet's branches would have no channels"
        _fail("segmentation_head", wanted, config.segmentation_head)
