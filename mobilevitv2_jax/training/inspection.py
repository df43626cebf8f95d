"""What a config leads to, told without training or compiling anything."""

from __future__ import annotations

import math

import jax
import ml_collections
from etils import epath

from mobilevitv2_jax.models import summary
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.processing import MobileViTImageProcessor
from mobilevitv2_jax.training import memory, report
from mobilevitv2_jax.training.experiment import Experiment, prepare
from mobilevitv2_jax.training.program import abstract_batch
from mobilevitv2_jax.weights import pretrained


def describe(config: ml_collections.ConfigDict) -> str:
    """Returns the resolved config, the model's cost, its batches, memory, shardings and rules.

    Raises:
        ConfigError: if the experiment cannot be set up.
    """
    experiment = prepare(config)
    size = config.data.image_size
    sections = {
        "config": "\n".join(report.config_lines(config)),
        f"model, for one image of {size} x {size}": summary.render(
            summary.summarize(experiment.abstract_model, size)
        ),
        "batch": _batch(experiment),
        "memory on each device": _memory(experiment),
        "shardings": _shardings(experiment),
        "rules": report.aligned(rules(experiment)),
    }
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections.items()) + "\n"


def describe_pretrained(path: epath.PathLike) -> str:
    """Returns what weights are, the model's cost, and the rules that they bring.

    Raises:
        WeightsError: if the path cannot be read, or its weights do not fit the model it tells.
    """
    found = pretrained.load(path)
    model, stored = found.model.config, found.stored
    images = MobileViTImageProcessor.from_dict(stored.preprocessor)
    size, crop = (" x ".join(map(str, x.values())) for x in (images.size, images.crop_size))
    names = list((model.id2label or {}).values())
    side = images.crop_size["height"] if images.do_center_crop else min(images.size.values())
    normalized = f"less {images.image_mean}, over {images.image_std}"
    rows = {
        **model_rules(model, side),
        "channel order": "BGR" if images.do_flip_channel_order else "RGB",
        "resize": f"{' and '.join(images.size)} {size}, {_FILTERS[images.resample]}"
        if images.do_resize
        else "no",
        "crop": crop if images.do_center_crop else "no",
        "values": f"bytes times {images.rescale_factor:.6g}"
        + (f", {normalized}" if images.do_normalize else ""),
        "classes": f"{len(names)}: {', '.join(names[:3])}{', …' * (len(names) > 3)}",
    }
    if stored.assumed_images:
        rows["assumed"] = stored.assumed_images
    origin = {
        "read from": stored.where,
        "form": {"hf": "Hugging Face", "ours": "a run"}.get(stored.source, stored.source),
        "class": type(found.model).__name__,
        "arrays": str(len(stored.arrays)),
    }
    sections = {
        "weights": report.aligned(origin),
        f"model, for one image of {side} x {side}": summary.render(
            summary.summarize(found.model, side)
        ),
        "rules": report.aligned(rows),
    }
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections.items()) + "\n"


_FILTERS = ("nearest", "Lanczos", "bilinear", "bicubic", "box", "Hamming")  # Pillow's numbers


def _batch(experiment: Experiment) -> str:
    """Returns name, type and shape of the entries of a training batch, and how it is split."""
    rows = {
        name: f"{x.dtype} {list(x.shape)}, on each device {list(x.sharding.shard_shape(x.shape))}"
        for name, x in abstract_batch(experiment).items()
    }
    return report.aligned(rows)


def _memory(experiment: Experiment) -> str:
    found = memory.estimate(experiment)
    parts = ("parameters", "gradients", "optimizer", "average", "batch")
    rows = {name: memory.format_bytes(getattr(found, name)) for name in parts}
    for name in ("activations", "total"):
        least, most = map(memory.format_bytes, getattr(found, name))
        rows[name] = f"{least} to {most}"
    return (
        report.aligned(rows) + "\nEstimated, not compiled. Activations: at least the outputs of "
        "convolutions and matrix products,\nkept once for the gradient; at most all that "
        "differentiation asks for, of which compilers keep less.\n`mobilevitv2 compile` tells what "
        "a TPU program needs."
    )


def _shardings(experiment: Experiment) -> str:
    """Returns the mesh, and the arrays of the state that are split over it."""
    state, mesh = experiment.abstract_state, experiment.mesh
    leaves = jax.tree_util.tree_leaves_with_path(state)
    split = {
        jax.tree_util.keystr(
            path, simple=True, separator="."
        ): f"{list(x.shape)} by {x.sharding.spec}"
        for path, x in leaves
        if not x.sharding.is_fully_replicated
    }
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    head = f"mesh {axes} ({mesh.devices.flat[0].device_kind}); batches are split over all axes\n"
    if not split:
        return head + f"all {len(leaves)} arrays of the state are whole on every device"
    held = memory.format_bytes(memory.bytes_per_device(state))
    return (
        head + f"{len(split)} of {len(leaves)} arrays of the state are split, the others whole on "
        f"every device, which holds {held}\n" + report.aligned(split)
    )


def rules(experiment: Experiment) -> dict[str, str]:
    """Returns the choices in which implementations differ, as they act in this experiment."""
    model, config = experiment.model, experiment.config
    platform = experiment.mesh.devices.flat[0].platform
    depthwise, pointwise = model.depthwise, model.pointwise
    if depthwise == "auto":
        depthwise = f"auto: {'shifts' if platform == 'cpu' else 'convolution'} on {platform}"
    if pointwise == "auto":
        pointwise = f"auto: {'convolution' if platform == 'tpu' else 'product'} on {platform}"
    part = config.data.batch_size // config.optimizer.accumulation_steps
    return {
        **model_rules(model, config.data.image_size),
        "initialization": model.initialization,
        "depthwise": depthwise,
        "pointwise": pointwise,
        "batch norm": f"statistics over {model.batch_norm_group_size or part} images, whatever the "
        "number of devices",
        "types": f"computation {model.dtype}, parameters {model.param_dtype}",
        "rematerialize": str(model.rematerialize),
    }


def model_rules(model: MobileViTV2Config, size: int) -> dict[str, str]:
    """Returns the rules of the forward pass, and where they act on images of `size` pixels."""
    dilated = {32: "nothing is dilated", 16: "stage 5 is", 8: "stages 4 and 5 are"}
    local = {"cvnets": "with", "huggingface": "without"}[model.dilation_rule]
    dilation = f"output stride {model.output_stride}: {dilated[model.output_stride]}"
    if model.output_stride < 32:
        dilation += f" dilated, {local} the local convolutions of the attention blocks"
    odd = _odd_stages(model, size)
    return {
        "dilation": f"{model.dilation_rule} ({dilation})",
        "odd sizes": f"{model.odd_size_rule} (at {size} pixels it acts in "
        f"{' and '.join(odd) or 'no stage'})",
    }


def _odd_stages(model: MobileViTV2Config, size: int) -> list[str]:
    """Returns the stages with attention whose feature map the patches do not divide."""
    stages = []
    side = size
    for stride, name in ((2, ""), (4, ""), (8, "stage 3"), (16, "stage 4"), (32, "stage 5")):
        if stride <= model.output_stride:
            side = math.ceil(side / 2)
        if name and side % model.patch_size:
            stages.append(f"{name} ({side} x {side})")
            if model.odd_size_rule == "resize":  # and so for the stages after it
                side += -side % model.patch_size
    return stages
