"""Measures what the switches of the config change, for `docs/peers.md`.

    python tests/oracle/peer_differences.py

needs no peer: both sides are ours, under the rules of one and of the other. Differences are the
largest absolute difference over the largest absolute value; weights and images are those of the
tests (`reference_weights.py`), hence random: trained weights will give other figures.
"""

from __future__ import annotations

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = map(str, pathlib.Path(__file__).parents[1:3])  # tests/, and benchmarks/ beside it

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from reference_weights import reference_images, reference_weights, shapes_of  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402

import mobilevitv2_jax as mv  # noqa: E402
from mobilevitv2_jax.models import functional  # noqa: E402
from mobilevitv2_jax.models.resize import resize_bilinear  # noqa: E402
from mobilevitv2_jax.weights.images import rules as rules_of_images  # noqa: E402


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest absolute difference over the largest absolute value of `a`."""
    return float(np.abs(a - b).max() / np.abs(a).max())


def initialization() -> None:
    """Prints the spread of a fresh model's logits, and how much of it comes from attention."""
    images = reference_images((128, 128), batch=8)
    for rule in ("cvnets", "huggingface"):
        config = mv.MobileViTV2Config(initialization=rule, num_labels=10)
        model = mv.MobileViTV2ForImageClassification(config, rngs=nnx.Rngs(0))
        graphs, parameters, statistics = functional.split(model)
        muted = {path: 0 * x if ".attention.out." in path else x for path, x in parameters.items()}
        for mode, graph in (("train", graphs.train), ("evaluation", graphs.evaluation)):

            @jax.jit
            def logits(parameters, graph=graph, statistics=statistics):
                return functional.merge(graph, parameters, statistics)(images).logits

            whole, without = np.asarray(logits(parameters)), np.asarray(logits(muted))
            spread = np.abs(whole - whole.mean(0)).max()
            print(
                f"initialization={rule}, {mode}: logits of 8 images spread by {spread:.1e}; "
                f"without attention they move by {np.abs(whole - without).max():.1e}"
            )


def upsampling() -> None:
    """Prints how far the two conventions of resizing logits are apart."""
    fields = {"width_multiplier": 0.5, "output_stride": 16, "num_labels": 21}
    model = mv.MobileViTV2ForSemanticSegmentation(mv.MobileViTV2Config(**fields), rngs=nnx.Rngs(0))
    weights = reference_weights(shapes_of(mv.weights.state_dict(model)))
    mv.weights.load_state_dict(model, weights)
    graphs, parameters, statistics = functional.split(model)
    images = reference_images((256, 256))
    run = jax.jit(lambda p, s: functional.merge(graphs.evaluation, p, s)(images).logits)
    logits = run(parameters, statistics)
    large = [
        np.asarray(resize_bilinear(logits, (256, 256), align_corners=align_corners))
        for align_corners in (False, True)
    ]
    other = (large[0].argmax(-1) != large[1].argmax(-1)).mean()
    print(
        f"align_corners, output stride 16, 256x256: upsampled logits differ by "
        f"{relative(*large):.1%}, the class of {other:.1%} of the pixels"
    )


def resizing_back() -> None:
    """Prints how far our third rule of odd sizes is from the two others."""
    images = reference_images((224, 224))
    logits = {}
    for rule in ("resize", "drop", "resize_back"):
        config = mv.MobileViTV2Config(odd_size_rule=rule, num_labels=10)
        model = mv.MobileViTV2ForImageClassification(config, rngs=nnx.Rngs(0))
        weights = reference_weights(shapes_of(mv.weights.state_dict(model)))
        mv.weights.load_state_dict(model, weights)
        graphs, parameters, statistics = functional.split(model)
        run = jax.jit(lambda p, s, g=graphs.evaluation: functional.merge(g, p, s)(images).logits)
        logits[rule] = np.asarray(run(parameters, statistics))
    for rule in ("drop", "resize_back"):
        print(f"224x224, {rule} against resize: {relative(logits['resize'], logits[rule]):.1%}")


def image_rules() -> None:
    """Prints how far pixels and logits are apart under the image rules of the peers."""
    config = mv.MobileViTV2Config(num_labels=10)
    model = mv.MobileViTV2ForImageClassification(config, rngs=nnx.Rngs(0))
    mv.weights.load_state_dict(model, reference_weights(shapes_of(mv.weights.state_dict(model))))
    model.eval()
    run = nnx.jit(lambda model, pixels: model(pixels).logits)
    photographs = load_sample_images().images

    def output(flip: bool, interpolation: str, short_side: int) -> tuple[np.ndarray, np.ndarray]:
        rules = rules_of_images(short_side, 256, interpolation, flip)
        pixels = mv.MobileViTImageProcessor.from_dict(rules)(photographs)["pixel_values"]
        return pixels, np.asarray(run(model, pixels))

    published = output(False, "bicubic", 288)
    for name, rules in (
        ("BGR", (True, "bicubic", 288)),
        ("bilinear", (False, "bilinear", 288)),
        ("BGR and bilinear", (True, "bilinear", 288)),
        ("short side 224 in the place of 288", (False, "bicubic", 224)),
    ):
        pixels, logits = output(*rules)
        print(
            f"{name} against RGB, bicubic, 288 -> 256, on 2 photographs: pixels differ by "
            f"{np.abs(pixels - published[0]).mean():.4f} on average, logits by "
            f"{relative(published[1], logits):.1%}"
        )


def channels() -> None:
    """Prints the channels that timm's rounding gives where it differs."""
    for width in (0.33, 0.6, 1.9):
        ours = mv.MobileViTV2Config(width_multiplier=width).stage_channels
        theirs = tuple(int(c * width) for c in (64, 128, 256, 384, 512))
        print(f"width {width}: {ours} here and at Hugging Face, {theirs} by timm's int(c * width)")


if __name__ == "__main__":
    for measurement in (channels, initialization, upsampling, resizing_back, image_rules):
        measurement()
