"""Images per CPU-second of the input pipeline, beside tf.data and torchvision.

    python -m benchmarks input [--rounds 7]

Two tables: decode + RandomResizedCrop to 256 pixels + flip, beside tf.data; and the whole training
transform of configs/imagenet.py, beside torchvision's on Pillow images (decoding included in all).
Each pipeline delivers batches of 32 from JPEGs in memory, with one thread. They take turns, so that
what else the machine does meets all of them; the ratio of a round is that of neighbours in time.
The JPEGs are generated: textures of 375 x 500 pixels, quality 92, chroma subsampled, some 100 kB.

Peers that are not installed are left out: `pip install tensorflow-cpu`, `pip install torchvision`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from mobilevitv2_jax.config import load
from mobilevitv2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Train, train_transform
from mobilevitv2_jax.data.loader import train_batches

SIZE, BATCH, IMAGES = 256, 32, 256
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

Pipeline = Callable[[list[bytes]], Iterator[Any]]
"""Takes JPEGs and gives batches, once through all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Jpegs:
    """JPEGs in memory as a source, as long as ImageNet: the cost of a shuffle depends on that."""

    jpegs: list[bytes]

    name, split, class_names, fingerprint = "jpegs", "train", ("image",), "jpegs"

    def __len__(self) -> int:
        return 1_281_167

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.jpegs[index % len(self.jpegs)], "label": np.int32(0)}


def make_jpegs(count: int) -> list[bytes]:
    """Returns generated textures whose size in bytes is that of ImageNet's images."""
    random, jpegs = np.random.RandomState(0), []
    for _ in range(count):
        picture = np.zeros((375, 500, 3), np.float32)
        for side, strength in ((6, 110), (40, 40), (250, 40)):
            noise = random.uniform(-1, 1, (side, side, 3)).astype(np.float32)
            picture += strength * cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(picture + 128, 0, 255).astype(np.uint8)
        jpegs.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    return jpegs


def ours(transform: Train) -> Pipeline:
    """Returns our loader with a transform."""

    def run(jpegs: list[bytes]) -> Iterator[Any]:
        with train_batches(Jpegs(jpegs), transform, batch_size=BATCH, seed=0, threads=0) as batches:
            for _ in range(len(jpegs) // BATCH):
                yield next(batches)["image"]

    return run


def cropping(fast: bool) -> Pipeline:
    """Returns our decode, crop and flip."""
    crop = RandomResizedCrop(SIZE, SCALE, RATIO, "bicubic", fast)
    return ours(Train((crop, HorizontalFlip(0.5))))


def recipe(fast: bool) -> Pipeline:
    """Returns our whole training transform of ImageNet."""
    config = load("configs/imagenet.py").unlock()
    config.augment.fast_resize = fast
    return ours(train_transform(config))


def tf_data(antialias: bool) -> Pipeline:
    """Returns tf.data's decode_and_crop, bicubic resize and flip, as big_vision has them."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def transform(jpeg: Any) -> Any:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(jpeg),
            tf.zeros([0, 0, 4], tf.float32),
            area_range=SCALE,
            aspect_ratio_range=RATIO,
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        image = tf.io.decode_and_crop_jpeg(jpeg, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), "bicubic", antialias=antialias)
        image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return tf.image.random_flip_left_right(image)

    def run(jpegs: list[bytes]) -> Iterator[Any]:
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        dataset = tf.data.Dataset.from_tensor_slices(jpegs).with_options(options)
        return iter(dataset.map(transform).batch(BATCH, drop_remainder=True).as_numpy_iterator())

    return run


def torchvision() -> Pipeline:
    """Returns torchvision's transform of the same recipe, on Pillow images."""
    import torch
    from PIL import Image
    from torchvision import transforms as t

    torch.set_num_threads(1)
    transform = t.Compose(
        [
            t.RandomResizedCrop(SIZE, SCALE, RATIO, t.InterpolationMode.BICUBIC),
            t.RandomHorizontalFlip(),
            t.RandAugment(2, 9, 31, t.InterpolationMode.BILINEAR),
            t.ToTensor(),
            t.RandomErasing(0.25),
        ]
    )

    def run(jpegs: list[bytes]) -> Iterator[Any]:
        for start in range(0, len(jpegs) // BATCH * BATCH, BATCH):
            pictures = (Image.open(io.BytesIO(jpeg)) for jpeg in jpegs[start : start + BATCH])
            yield torch.stack([transform(picture.convert("RGB")) for picture in pictures])

    return run


def rate(pipeline: Pipeline, jpegs: list[bytes]) -> float:
    """Returns images per second of this process's CPU time, over all its threads."""
    began, count = time.process_time(), 0
    for batch in pipeline(jpegs):
        count += len(batch)
    return count / (time.process_time() - began)


def table(title: str, pipelines: dict[str, Pipeline], jpegs: list[bytes], rounds: int) -> str:
    """Measures pipelines in turns and returns their rates, and ratios to the first."""
    for pipeline in pipelines.values():
        rate(pipeline, jpegs[: 2 * BATCH])  # warm up: build graphs, load libraries
    measured = [
        {name: rate(pipeline, jpegs) for name, pipeline in pipelines.items()} for _ in range(rounds)
    ]
    reference = next(iter(pipelines))
    lines = [title, f"{'':32}images per CPU-second   ratio (smallest to largest of {rounds})"]
    for name in pipelines:
        rates = [one[name] for one in measured]
        ratios = sorted(one[name] / one[reference] for one in measured)
        lines.append(
            f"{name:32}{statistics.median(rates):10.0f}{'':14}{statistics.median(ratios):.2f}"
            f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    return "\n".join(lines) + "\n"


def run(options: Any) -> Iterator[str]:
    """Yields both tables."""
    cv2.setNumThreads(0)
    jpegs = make_jpegs(IMAGES)
    found = {name for name in ("tensorflow", "torchvision") if importlib.util.find_spec(name)}
    for missing in sorted({"tensorflow", "torchvision"} - found):
        print(f"{missing} is not installed and left out", file=sys.stderr)
    crops, recipes = {}, {}
    if "tensorflow" in found:
        crops["tf.data"] = tf_data(antialias=False)
        crops["tf.data, antialiased"] = tf_data(antialias=True)
    if "torchvision" in found:
        recipes["torchvision on Pillow"] = torchvision()
    crops |= {"ours": cropping(False), "ours, fast_resize": cropping(True)}
    recipes |= {"ours": recipe(False), "ours, fast_resize": recipe(True)}
    size = sum(map(len, jpegs)) / len(jpegs) / 1e3
    title = f"decode + RandomResizedCrop({SIZE}) + flip"
    yield f"{len(jpegs)} JPEGs of {size:.0f} kB on average\n"
    yield table(title, crops, jpegs, options.rounds)
    yield table("the whole training transform", recipes, jpegs, options.rounds)
