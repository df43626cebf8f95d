"""The published protocol on whole images, against the same worked image by image.

The model is a single convolution: what is tested is what happens around it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_matrix

import mobilevitv2_jax as mv
from mobilevitv2_jax.data.loader import planned_batches, survey
from mobilevitv2_jax.data.protocol import Protocol, make_plan
from mobilevitv2_jax.evaluation.pictures import palette
from mobilevitv2_jax.evaluation.segmentation import (
    evaluate_protocol,
    make_protocol_step,
    named_metrics,
    upsampled_classes,
)
from mobilevitv2_jax.evaluation.whole_pictures import Shown, save_whole_segmentations
from mobilevitv2_jax.models.functional import split
from mobilevitv2_jax.models.interpolation import matrix
from mobilevitv2_jax.models.layers import Convolution
from mobilevitv2_jax.models.outputs import SemanticSegmenterOutput
from mobilevitv2_jax.models.pixels import Pixels

CLASSES, STRIDE = 4, 4
NAMES = ("ground", "a", "b", "c")
SIZES = ((30, 41), (41, 30), (33, 45), (60, 82))  # three of them become 32 x 40


class SmallSegmenter(nnx.Module):
    """One convolution with the output stride of the protocol."""

    def __init__(self, *, rngs):
        config = mv.MobileViTV2Config(width_multiplier=0.25)
        self.layer = Convolution(config, 3, CLASSES, kernel_size=3, stride=STRIDE, rngs=rngs)

    def __call__(self, pixel_values):
        return SemanticSegmenterOutput(logits=self.layer(pixel_values - 0.5))


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Noise in blocks, with a map of noise in blocks and void."""

    name: str = "scenes"

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        random = np.random.RandomState(index)
        height, width = SIZES[index]
        image, label = (
            np.kron(x, np.ones((8, 8, 1), np.uint8))[:height, :width]
            for x in (
                random.randint(0, 256, (11, 11, 3), np.uint8),
                random.choice([0, 1, 2, 3, 255, 77], (11, 11, 1)).astype(np.uint8),
            )
        )
        return {"image": image, "label": label[..., 0]}


def run(batch_size, scales=(1.0,), flip=False, extremes=0):
    graphs, parameters, statistics = split(SmallSegmenter(rngs=nnx.Rngs(0)))
    source, protocol = Scenes(), Protocol(32, STRIDE, "bicubic", scales)
    sizes, _ = survey(source)
    plan = make_plan(protocol, sizes, batch_size)
    doubled = jax.tree.map(lambda x: -x, parameters)
    weights = {"eval": (parameters, statistics), "eval_ema": (doubled, statistics)}
    with planned_batches(
        source, plan, order=plan.order, counted=plan.counted, batch_size=batch_size, threads=0
    ) as batches:
        judgements, compilations = evaluate_protocol(
            make_protocol_step(graphs.evaluation, Pixels(), 255, flip),
            weights,
            batches,
            jax.device_put,
            None,
            extremes,
        )
    assert compilations.count == len(plan.bounds)
    return judgements


def enlarge(x, size):
    """Interpolates [height, width, channels] with the corners kept in place."""
    rows, columns = (matrix(a, b, True) for a, b in zip(x.shape[:2], size, strict=True))
    return np.einsum("rh,cw,hwk->rck", rows, columns, x)


@functools.lru_cache
def predict_alone(index, sign=1, scales=(1.0,), flip=False):
    """Returns the classes of one image, step by step as the protocol says, in float64."""
    layer = SmallSegmenter(rngs=nnx.Rngs(0))
    image = Scenes()[index]["image"]
    height, width = image.shape[:2]
    total = 0
    for scale in scales:
        short = round(32 * scale)
        resized = (short * height // min(height, width), short * width // min(height, width))
        picture = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BICUBIC)
        x = enlarge(np.asarray(picture), [side // STRIDE * STRIDE for side in resized]) / 255
        for mirrored in (False, True)[: 1 + flip]:
            seen = (x[:, ::-1] if mirrored else x).astype(np.float32)
            logits = enlarge(sign * np.asarray(layer(seen[None]).logits[0]), (height, width))
            logits = logits[:, ::-1] if mirrored else logits
            several = len(scales) > 1 or flip
            total += np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) if several else logits
    return total.argmax(-1)


def expected(sign=1, **views):
    total = np.zeros((CLASSES, CLASSES), int)
    for index in range(len(SIZES)):
        example = Scenes()[index]
        predicted = predict_alone(index, sign, **views)
        counted = example["label"] < CLASSES
        total += sklearn_matrix(
            example["label"][counted], predicted[counted], labels=range(CLASSES)
        )
    return total


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_confusion_matrix_is_that_of_scikit_learn_over_single_images(batch_size):
    judgements = run(batch_size)
    for prefix, sign in (("eval", 1), ("eval_ema", -1)):
        np.testing.assert_array_equal(judgements[prefix].confusion, expected(sign))


@pytest.mark.slow
def test_views_of_several_scales_and_mirrored_ones_are_averaged_as_probabilities():
    views = {"scales": (0.75, 1.0), "flip": True}
    judgement = run(2, **views)["eval"]
    np.testing.assert_array_equal(judgement.confusion, expected(**views))
    assert (judgement.confusion != expected()).any()


def test_metrics_have_the_names_of_the_protocol():
    judgements = run(4)
    metrics = named_metrics(judgements, NAMES)
    assert set(metrics) == {
        f"{prefix}/{name}"
        for prefix in ("eval", "eval_ema")
        for name in ("miou", "pixel_accuracy", *(f"iou/{name}" for name in NAMES))
    }
    mean = np.mean([metrics[f"eval/iou/{name}"] for name in NAMES])
    assert metrics["eval/miou"] == pytest.approx(mean, rel=1e-12)
    judgements["eval"].confusion[3] = judgements["eval"].confusion[:, 3] = 0
    assert "iou/c" not in judgements["eval"].metrics(NAMES)
    judgements["eval"].confusion[:] = 0
    with pytest.raises(ValueError, match="no pixel was evaluated"):
        judgements["eval"].metrics(NAMES)


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_worst_and_the_best_images_are_kept_with_their_predictions(batch_size):
    judgement = run(batch_size, extremes=2)["eval"]
    ious = {}
    for index in range(len(SIZES)):
        example = Scenes()[index]
        predicted, counted = predict_alone(index), example["label"] < CLASSES
        found = sklearn_matrix(example["label"][counted], predicted[counted], labels=range(CLASSES))
        union = found.sum(0) + found.sum(1) - found.diagonal()
        ious[index] = np.mean(found.diagonal()[union > 0] / union[union > 0])
    ranked = sorted(ious, key=ious.get)
    assert [found.index for found in judgement.worst] == ranked[:2]
    assert [found.index for found in judgement.best] == ranked[::-1][:2]
    for found in (*judgement.worst, *judgement.best):
        assert found.iou == pytest.approx(ious[found.index], rel=1e-12)
        height, width = SIZES[found.index]
        predicted = predict_alone(found.index)
        np.testing.assert_array_equal(found.classes[:height, :width], predicted)


def test_maps_of_different_sizes_in_one_batch_are_each_enlarged_to_their_own():
    """Ties aside (there are none in noise), interpolation of float32 decides alike."""
    sizes = [(64, 70), (50, 61), (1, 1), (33, 70)]
    logits = np.random.RandomState(0).normal(size=(4, 5, 6, 7)).astype(np.float32)
    enlarged = jax.jit(upsampled_classes, static_argnums=2)
    found = enlarged([jnp.asarray(logits)], jnp.asarray(sizes), (64, 70))
    assert found.shape == (4, 64, 70) and found.dtype == jnp.uint8
    for row, (height, width) in enumerate(sizes):
        large = enlarge(logits[row], (height, width))
        np.testing.assert_array_equal(found[row, :height, :width], large.argmax(-1))


def test_pictures_are_drawn_together_and_each_by_itself_in_the_palette_of_voc(tmp_path):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (40, 50, 3), np.uint8)
    truth, prediction = (random.choice([0, 2, 255], (40, 50)).astype(np.uint8) for _ in range(2))
    shown = [Shown("01_7", image, truth, prediction, 0.25)]
    save_whole_segmentations(tmp_path / "worst", shown, NAMES, "title")
    with Image.open(tmp_path / "worst.png") as figure:
        colours = {colour for _, colour in figure.convert("RGB").getcolors(1 << 22)}
    assert tuple(palette()[2].tolist()) in colours
    for part, array in (("truth", truth), ("prediction", prediction)):
        with Image.open(tmp_path / "worst" / f"01_7_{part}.png") as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), array)
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), palette()[array])
    with Image.open(tmp_path / "worst" / "01_7_image.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)
    assert (tmp_path / "worst" / "01_7_overlay.png").exists()
