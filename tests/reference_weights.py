"""Weights and images for comparisons with other implementations, the same on every machine.

Everything is drawn from `np.random.RandomState`, whose stream never changes, uniformly, so that
no transcendental function of the platform is involved. Every array has a stream of its own,
named by its key, hence the order of the keys does not matter.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

SIZES = ((256, 256), (192, 320))
WIDTHS = (0.33, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
BATCH = 2
LABELS = 10

# Keeps the context of the attention, a mean over the patches, as large as the value it gates.
ATTENTION_GAIN = 2.0


def reference_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns weights under Hugging Face's keys in which every branch of the model matters.

    Kernels are scaled by their fan-in; scales and variances lie in 0.5 to 1.5; biases and
    running means are not zero.
    """
    return {key: _array(key, tuple(shape)) for key, shape in shapes.items()}


def _array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    noise = np.random.RandomState(zlib.crc32(key.encode())).uniform(-1, 1, shape)
    if len(shape) >= 2:
        gain = ATTENTION_GAIN if ".attention." in key else 1.0
        noise *= gain * np.sqrt(3 / np.prod(shape[1:]))
    elif key.endswith("running_var") or key.endswith("weight"):
        noise = 1 + noise / 2
    else:
        noise *= 0.5
    return noise.astype(np.float32)


def reference_images(size: tuple[int, int], channels: int = 3, batch: int = BATCH) -> np.ndarray:
    """Returns uniform noise in [0, 1], channels last."""
    return np.random.RandomState(0).uniform(0, 1, (batch, *size, channels)).astype(np.float32)


def reference_labels(labels: int = LABELS) -> dict[str, np.ndarray]:
    """Returns labels for each problem type."""
    random = np.random.RandomState(1)
    return {
        "single_label_classification": random.randint(0, labels, BATCH),
        "multi_label_classification": random.randint(0, 2, (BATCH, labels)).astype(np.float32),
        "regression": random.uniform(-1, 1, (BATCH, labels)).astype(np.float32),
    }


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array."""
    return {key: tuple(array.shape) for key, array in arrays.items()}


def digest(
    logits: np.ndarray, pooled: np.ndarray, losses: Mapping[str, float], maps: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns what a golden file keeps of the outputs; `maps` are channels last.

    Of a feature map these are 64 values at fixed places, the mean of each channel, and its
    largest absolute value, against which errors are measured.
    """
    kept = {"logits": logits, "pooled": pooled}
    kept |= {f"loss/{name}": np.asarray(loss) for name, loss in losses.items()}
    for stage, x in enumerate(maps, start=1):
        places = np.random.RandomState(stage).randint(0, x.size, 64)
        kept[f"stage {stage}/samples"] = x.reshape(-1)[places]
        kept[f"stage {stage}/channel means"] = x.mean((0, 1, 2), dtype=np.float64)
        kept[f"stage {stage}/largest"] = np.abs(x).max()
    return {name: np.asarray(value, np.float32) for name, value in kept.items()}
