"""An experiment and a model small enough to be compiled and run many times."""

import dataclasses
import pathlib

import numpy as np
from flax import nnx

from mobilevitv2_jax.config import default_config, load
from mobilevitv2_jax.models.backbone import pool
from mobilevitv2_jax.models.layers import ConvNormAct, Pointwise, activation
from mobilevitv2_jax.models.losses import segmentation_loss
from mobilevitv2_jax.models.outputs import ImageClassifierOutput, SemanticSegmenterOutput
from mobilevitv2_jax.training import task

DIGITS = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
VALUES = {
    "model.width_multiplier": 0.25,
    "model.n_attn_blocks": (1, 1, 1),
    "model.base_attn_unit_dims": (16, 24, 32),
    "model.image_size": 32,
    "data.batch_size": 16,
    "data.image_size": 32,
    "data.threads": 1,
    "eval.resize": 32,
    "eval.crop": 32,
    "eval.batch_size": 72,
    "eval.every": "3 steps",
    "eval.pictures_from": 72,
    "schedule.total": "6 steps",
    "schedule.warmup": "0 steps",
    "checkpoint.every": "2 steps",
    "log.every": "2 steps",
    "mesh.devices": 1,
}


def tiny_config(changes=None):
    """Returns six steps of sixteen digits at 32x32 pixels on one device, with `changes`.

    Tests that change nothing share one compiled training step of the real model (15 to 40 s).
    """
    config = default_config()
    config.update_from_flattened_dict({**VALUES, **(changes or {})})
    return config.lock()


def tiny_digits(changes=None):
    """Returns the same of `configs/digits.py`, as a command with `tiny_flags` has it."""
    config = load(str(DIGITS))
    config.update_from_flattened_dict({**VALUES, **(changes or {})})
    return config


def tiny_flags(changes=None):
    """Returns the options that make of `configs/digits.py` the same experiment."""
    return [f"--config.{key}={value}" for key, value in {**VALUES, **(changes or {})}.items()]


class SmallModel(nnx.Module):
    """Two convolutions, two BatchNorms, dropout and a classifier: compiles in a second or two.

    It stands in for the real model where a test is about what happens around it.
    """

    def __init__(self, config, *, rngs):
        self.config = config
        act = activation(config)
        self.stem = ConvNormAct(config, 3, 8, kernel_size=3, stride=4, act=act, rngs=rngs)
        self.deep = ConvNormAct(config, 8, 12, act=act, rngs=rngs)
        self.dropout = nnx.Dropout(config.ffn_dropout)
        self.classifier = Pointwise(config, 12, config.num_labels, rngs=rngs)

    @property
    def stages(self):
        return ([self.deep],)

    def __call__(self, pixel_values, *, rngs=None):
        features = pool(self.deep(self.stem(pixel_values)))
        logits = self.classifier(self.dropout(features, rngs=rngs))
        return ImageClassifierOutput(loss=None, logits=logits, hidden_states=None)


class SmallSegmenter(nnx.Module):
    """Two convolutions and a classifier of every position, at output stride 16."""

    def __init__(self, config, *, rngs):
        self.config = config
        act = activation(config)
        self.stem = ConvNormAct(config, 3, 16, kernel_size=5, stride=4, act=act, rngs=rngs)
        self.deep = ConvNormAct(config, 16, 32, kernel_size=5, stride=4, act=act, rngs=rngs)
        self.classifier = Pointwise(config, 32, config.num_labels, rngs=rngs)

    @property
    def stages(self):
        return ([self.deep],)

    def __call__(self, pixel_values, labels=None, *, rngs=None):
        logits = self.classifier(self.deep(self.stem(pixel_values)))
        loss = None
        if labels is not None:
            loss = segmentation_loss(logits, labels, ignored=255, align_corners=True)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


def use_small_model(monkeypatch, model=SmallModel):
    """Puts `SmallModel`, or another, in the place of the real classifier; `SmallSegmenter`, too."""
    for name, kind in (("classification", model), ("segmentation", SmallSegmenter)):
        small = dataclasses.replace(task._TASKS[name], model=kind)
        monkeypatch.setitem(task._TASKS, name, small)


def noise_batch(size=16):
    """Returns a batch of noise with labels, the same at every call."""
    random = np.random.RandomState(0)
    return {
        "image": random.randint(0, 256, (size, 32, 32, 3), np.uint8),
        "label": random.randint(0, 10, size, np.int32),
    }
