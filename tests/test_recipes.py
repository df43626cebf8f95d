"""The published recipes: what `configs/` says against the tables of the original release.

The tables are copied from ml-cvnets' YAML files and README; rates are computed here anew, as its
`optim/scheduler/cosine.py` does: in double precision, rounded to eight decimals.
"""

import dataclasses
import math

import numpy as np
import pytest

from mobilevitv2_jax import config as configs
from mobilevitv2_jax.config import ConfigError, model_config
from mobilevitv2_jax.data.augment import (
    Evaluate,
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    evaluation_transform,
    train_transform,
)
from mobilevitv2_jax.models.functional import split
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.tasks import MobileViTV2ForImageClassification
from mobilevitv2_jax.training.optimizer import decay_mask
from mobilevitv2_jax.training.schedule import Schedule
from mobilevitv2_jax.validation import validate

IMAGENET, IMAGENET_21K = 1_281_167, 11_060_223  # training images; the latter of 21k-P


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row of the tables."""

    file: str
    arg: str
    examples: int
    batch: int
    epochs: int
    peak: float
    end: float
    decay: float
    optimizer: str = "adamw"
    warmup: int = 0
    clip: float = 10.0
    ema: float = 0.0005
    augmented: bool = True
    size: int = 256
    resize: int = 288
    group: int = 128  # images of a GPU, over which its BatchNorm took statistics

    def rate(self, step):
        """Returns the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return round(1e-6 + step * (self.peak - 1e-6) / self.warmup, 8)
        epoch = step // math.ceil(self.examples / self.batch)
        cosine = 0.5 * (self.peak - self.end) * (1 + math.cos(math.pi * epoch / self.epochs))
        return round(max(self.end + cosine, 0.0), 8)


def at_256(width, peak, decay):
    return Recipe(
        "imagenet", f"width={width}", IMAGENET, 1024, 300, peak, peak / 10, decay, warmup=20_000
    )


def on_21k(width, decay):
    arg = f"width={width}"
    return Recipe("imagenet21k", arg, IMAGENET_21K, 4096, 80, 3e-4, 1e-6, decay)


def back(width):
    arg = f"width={width},transfer"
    return Recipe(
        "imagenet21k", arg, IMAGENET, 256, 50, 1e-2, 1e-3, 4e-5, optimizer="sgd", clip=0.0
    )


def at_384(width):
    return Recipe(
        "imagenet_384",
        f"width={width}",
        IMAGENET,
        128,
        10,
        1e-3,
        1e-3,
        4e-5,
        optimizer="sgd",
        ema=0.00005,
        augmented=False,
        size=384,
        resize=384,
        group=64,
    )


WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
RECIPES = (
    at_256(2.0, 0.0020, 0.050),
    at_256(1.75, 0.0026, 0.039),
    at_256(1.5, 0.0035, 0.029),
    at_256(1.25, 0.0049, 0.020),
    at_256(1.0, 0.0075, 0.013),
    at_256(0.75, 0.0090, 0.008),
    at_256(0.5, 0.0090, 0.004),
    on_21k(1.5, 0.029),
    on_21k(1.75, 0.039),
    on_21k(2.0, 0.050),
    *map(back, (1.5, 1.75, 2.0)),
    *map(at_384, WIDTHS),
)
EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.file}:{r.arg}")


def load(recipe):
    config = configs.load(f"configs/{recipe.file}.py", recipe.arg)
    validate(config)
    return config


def named_steps(recipe):
    """Returns the steps at which a schedule could go wrong."""
    epoch = math.ceil(recipe.examples / recipe.batch)
    middle, last = recipe.epochs // 2 * epoch, recipe.epochs * epoch - 1
    return {
        "first": 0,
        "second": 1,
        "middle of the warm-up": recipe.warmup // 2,
        "end of the warm-up": max(recipe.warmup - 1, 0),
        "after the warm-up": recipe.warmup,
        "end of an epoch": 20 * epoch - 1 if recipe.epochs > 20 else epoch - 1,
        "beginning of an epoch": 20 * epoch if recipe.epochs > 20 else epoch,
        "middle": middle,
        "last epoch": last - epoch + 1,
        "last": last,
    }


@EVERY_RECIPE
def test_the_learning_rate_is_the_published_one_at_every_named_step(recipe):
    schedule = Schedule.from_config(load(recipe), recipe.examples)
    assert schedule.steps == named_steps(recipe)["last"] + 1
    for name, step in named_steps(recipe).items():
        # Half a unit of the eighth decimal, and as much again for float32.
        assert float(schedule(step)) == pytest.approx(recipe.rate(step), abs=1e-8), name


@EVERY_RECIPE
def test_by_a_switch_the_cosine_falls_with_every_step(recipe):
    config = load(recipe).unlock()
    config.schedule.per_epoch = False
    schedule = Schedule.from_config(config, recipe.examples)
    for step in named_steps(recipe).values():
        if step >= recipe.warmup:
            cosine = 1 + math.cos(math.pi * step / schedule.steps)
            expected = recipe.end + 0.5 * (recipe.peak - recipe.end) * cosine
            # float32: of the peak, and of the argument of the cosine.
            assert float(schedule(step)) == pytest.approx(expected, abs=3e-7 * recipe.peak)


@EVERY_RECIPE
def test_the_other_values_are_the_published_ones(recipe):
    config = load(recipe)
    group = config.optimizer
    assert (group.name, group.gradient_clip) == (recipe.optimizer, recipe.clip)
    assert group.weight_decay == recipe.decay and not group.decay_one_dimensional
    assert (group.betas, group.epsilon, group.momentum) == ((0.9, 0.999), 1e-8, 0.9)
    assert group.label_smoothing == 0.1 and config.ema.momentum == recipe.ema
    assert config.data.batch_size == recipe.batch
    assert config.model.batch_norm_group_size == recipe.group
    assert config.model.width_multiplier == float(recipe.arg.split("=")[1].split(",")[0])


@EVERY_RECIPE
def test_images_are_transformed_as_published(recipe):
    config = load(recipe)
    size, on = recipe.size, int(recipe.augmented)
    assert train_transform(config).steps == (
        RandomResizedCrop(size, (0.08, 1.0), (3 / 4, 4 / 3), "bicubic"),
        HorizontalFlip(0.5),
        RandAugment(2 * on, 9),
        RandomErasing(0.25 * on),
    )
    assert (config.augment.mixup, config.augment.cutmix) == (0.2 * on, 1.0 * on)
    assert evaluation_transform(config) == Evaluate(recipe.resize, size, "bicubic")
    order, mean, std = config.data.channel_order, config.data.mean, config.data.std
    assert (order, mean, std) == ("rgb", (0.0,) * 3, (1.0,) * 3)


INVERTED = ("expand", "depthwise", "project")
BLOCK = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")


def parameters_of(layers):
    """Returns the names of the parameters that are decayed, and of those that are not."""
    decayed, spared = set(), set()

    def normalized(place):
        decayed.add(f"{place}.convolution.kernel")
        spared.update(f"{place}.normalization.{name}" for name in ("scale", "bias"))

    normalized("backbone.stem")
    for stage, blocks in enumerate((1, 2, 1, 1, 1)):
        for block in range(blocks):
            for name in INVERTED:
                normalized(f"backbone.stages.{stage}.{block}.{name}")
    for stage in (2, 3, 4):
        place = f"backbone.stages.{stage}.1"
        normalized(f"{place}.local")
        normalized(f"{place}.project")
        decayed.add(f"{place}.enter.kernel")
        norms = [f"{place}.norm"]
        for layer in range(layers[stage - 2]):
            inside = f"{place}.layers.{layer}"
            norms += [f"{inside}.attention_norm", f"{inside}.feed_forward_norm"]
            for name in BLOCK:
                decayed.add(f"{inside}.{name}.kernel")
                spared.add(f"{inside}.{name}.bias")
        spared.update(f"{norm}.{name}" for norm in norms for name in ("scale", "bias"))
    decayed.add("classifier.kernel")
    spared.add("classifier.bias")
    return decayed, spared


@pytest.fixture(scope="module")
def parameters():
    config = model_config(configs.load("configs/imagenet.py", "width=0.5"), num_labels=1000)
    model = MobileViTV2ForImageClassification(config, rngs=Blank())
    return split(model)[1]


@EVERY_RECIPE
def test_the_decay_spares_exactly_the_one_dimensional_parameters(recipe, parameters):
    decayed, spared = parameters_of(load(recipe).model.n_attn_blocks)
    mask = decay_mask(parameters, load(recipe).optimizer.decay_one_dimensional)
    assert {path for path, on in mask.items() if on} == decayed
    assert {path for path, on in mask.items() if not on} == spared
    assert {path for path, array in parameters.items() if len(array.shape) == 1} == spared


@pytest.mark.parametrize(
    ("file", "arg"),
    [("imagenet", "width=0.6"), ("imagenet_384", "width=3"), ("imagenet21k", "width=1.0")],
)
def test_a_width_without_a_published_recipe_is_refused(file, arg):
    with pytest.raises(ConfigError, match=r"width must be one of .*, got "):
        configs.load(f"configs/{file}.py", arg)


def test_the_recipes_cover_every_width():
    for file, widths in (("imagenet", WIDTHS), ("imagenet_384", WIDTHS)):
        found = {recipe.arg for recipe in RECIPES if recipe.file == file}
        assert found == {f"width={width}" for width in widths}
    assert np.unique([recipe.decay for recipe in RECIPES if recipe.file == "imagenet"]).size == 7
