"""The segmentation recipes: what `configs/` says against the tables of the original release.

The tables are copied from ml-cvnets' YAML files `config/segmentation/*/*_mobilevitv2.yaml`.
"""

import dataclasses
import math

import pytest

from mobilevitv2_jax import config as configs
from mobilevitv2_jax.config import model_config
from mobilevitv2_jax.data import segmentation
from mobilevitv2_jax.models.tasks import AUXILIARY_WEIGHT
from mobilevitv2_jax.training.schedule import Schedule
from mobilevitv2_jax.validation import validate

TRAINAUG, ADE20K = 10_582, 20_210  # training images


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row of the tables."""

    file: str
    arg: str
    head: str
    examples: int
    batch: int
    epochs: int
    optimizer: str
    decay: float
    peak: float
    end: float
    stride: int
    rates: tuple
    classes: int
    warmup: int = 0
    splits: tuple = ("training", "validation")

    def rate(self, step):
        """Returns the learning rate of a step, counted from 0: ml-cvnets' cosine, by epochs."""
        if step < self.warmup:
            return 5e-5 + step * (self.peak - 5e-5) / self.warmup
        epoch = step // math.ceil(self.examples / self.batch)
        cosine = 1 + math.cos(math.pi * epoch / self.epochs)
        return self.end + 0.5 * (self.peak - self.end) * cosine


def voc(arg, head, split="trainaug", stride=16):
    return Recipe(
        "voc",
        arg,
        head,
        TRAINAUG,
        128,
        50,
        "adamw",
        0.05,
        5e-4,
        1e-6,
        stride,
        (6, 12, 18),
        21,
        warmup=500,
        splits=(split, "val"),
    )


def ade20k(arg, head):
    return Recipe(
        "ade20k", arg, head, ADE20K, 16, 120, "sgd", 1e-4, 2e-2, 2e-4, 8, (12, 24, 36), 150
    )


RECIPES = (
    voc("", "deeplabv3"),
    voc("coco,width=0.5", "deeplabv3", "trainaug+coco"),
    voc("head=pspnet,output_stride=8", "pspnet", stride=8),
    ade20k("", "deeplabv3"),
    ade20k("head=pspnet", "pspnet"),
)


@pytest.fixture(params=RECIPES, ids=lambda recipe: f"{recipe.file}:{recipe.arg}")
def recipe(request):
    return request.param


def load(recipe):
    config = configs.load(f"configs/{recipe.file}.py", recipe.arg)
    validate(config)
    return config


def test_optimizer_batch_and_splits_are_those_of_the_table(recipe):
    config = load(recipe)
    assert (config.data.train_split, config.data.eval_split) == recipe.splits
    assert (config.data.batch_size, config.data.image_size) == (recipe.batch, 512)
    c = config.optimizer
    assert (c.name, c.weight_decay) == (recipe.optimizer, recipe.decay)
    assert (c.betas, c.epsilon, c.momentum) == ((0.9, 0.999), 1e-8, 0.9)
    assert (c.gradient_clip, c.layer_decay, c.freeze_backbone) == (10, 1, False)
    assert not c.decay_one_dimensional and config.ema.momentum == 0.0005
    assert config.model.batch_norm_group_size is None  # statistics of the global batch


def test_the_learning_rate_is_the_originals_at_every_edge(recipe):
    """Tolerance: 1e-6 relative, float32."""
    schedule = Schedule.from_config(load(recipe), recipe.examples)
    per_epoch = math.ceil(recipe.examples / recipe.batch)
    assert schedule.steps == recipe.epochs * per_epoch
    for step in (0, 1, 250, 499, 500, per_epoch - 1, per_epoch, schedule.steps - 1):
        assert float(schedule(step)) == pytest.approx(recipe.rate(step), rel=1e-6)


def test_the_model_is_the_originals(recipe):
    model = model_config(load(recipe), num_labels=recipe.classes)
    assert (model.segmentation_head, model.output_stride) == (recipe.head, recipe.stride)
    assert (model.atrous_rates, model.aspp_out_channels) == (recipe.rates, 512)
    assert model.auxiliary_head and AUXILIARY_WEIGHT == 0.4
    assert (model.aspp_dropout_prob, model.classifier_dropout_prob) == (0.0, 0.1)
    assert model.align_corners and model.dilation_rule == "cvnets"
    assert (model.odd_size_rule, model.initialization) == ("resize", "cvnets")
    assert model.semantic_loss_ignore_index == 255
    assert "width=0.5" not in recipe.arg or model.width_multiplier == 0.5


def test_the_transforms_are_the_originals_in_its_order(recipe):
    config = load(recipe)
    assert segmentation.train_transform(config).steps == (
        segmentation.RandomShortSide(256, 768, 1024, "bicubic"),
        segmentation.HorizontalFlip(0.5),
        segmentation.RandomCrop(512, 0.75),
        segmentation.Blur(0.5),
        segmentation.Photometric(0.5),
        segmentation.Rotation(10.0),
    )
    assert segmentation.evaluation_transform(config) == segmentation.Squash(512, "bicubic")
    assert (config.eval.resize, config.eval.interpolation) == (512, "bicubic")


def test_your_own_masks_are_augmented_in_proportion_to_the_resolution():
    config = configs.load("configs/masks.py", "some/place,resolution=128,head=pspnet")
    validate(config)
    assert config.data.directory == "some/place"
    assert config.model.segmentation_head == "pspnet"
    assert config.augment.short_side == (64, 192) and config.augment.long_side == 256
    assert config.data.image_size == config.eval.resize == config.eval.crop == 128
