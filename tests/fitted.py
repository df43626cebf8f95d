"""Models of every width whose accuracy on the embedded digits means something, in minutes.

The narrowest is trained on them for a few hundred steps. The others are made of it: their channels
are copies of its channels, with noise, and compute the same but for that (Net2Net, arXiv
1511.05641).
"""

import functools
import pathlib
import tempfile

import jax
import numpy as np
import optax
from flax import nnx

import mobilevitv2_jax as mv
from mobilevitv2_jax.config import default_config, to_json
from mobilevitv2_jax.export import examples
from mobilevitv2_jax.export.artefact import Subject
from mobilevitv2_jax.export.interface import Options
from mobilevitv2_jax.export.program import fixed_rules
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.training.experiment import open_source
from mobilevitv2_jax.training.program import compiler_options
from mobilevitv2_jax.training.run_directory import read_config

SIZES = {"classification": 32, "segmentation": 64}
SOURCES = {"classification": "digits", "segmentation": "digit_scenes"}
NARROW = 0.5
_KINDS = {
    "classification": mv.MobileViTV2ForImageClassification,
    "segmentation": mv.MobileViTV2ForSemanticSegmentation,
}
_STEPS = {"classification": 120, "segmentation": 400}
_BATCH = {"classification": 64, "segmentation": 16}
_LEARNING_RATE = 3e-3
_NOISE = 0.05  # of the values of copied weights


def fitted(task, width, directory):
    """Returns a `Subject` of a width with the digits for its data."""
    run = _run_directory(directory, task)
    narrow, rules = _trained(task)
    model = narrow if width == NARROW else _widened(narrow, task, width)
    return Subject(model, rules, run, f"trained at width {NARROW}, of width {width}")


def _run_directory(directory, task):
    """Writes what the data of a run are found by."""
    config = default_config()
    config.task, config.data.source, config.data.threads = task, SOURCES[task], 1
    (directory / "config.json").write_text(to_json(config))
    return str(directory)


def _new(task, width):
    digits = [str(digit) for digit in range(10)]
    config = mv.MobileViTV2Config(
        width_multiplier=width,
        image_size=SIZES[task],
        id2label=dict(enumerate(digits if task == "classification" else ["background", *digits])),
        output_stride=32 if task == "classification" else 16,
        aspp_out_channels=128,
        aspp_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        align_corners=False,
    )
    return _KINDS[task](config, rngs=nnx.Rngs(0))


@functools.cache
def _trained(task):
    """Returns the narrow model, and how its images come in."""
    side = SIZES[task]
    processor = mv.MobileViTImageProcessor(
        size=side, crop_size=side, resample=2, do_flip_channel_order=False
    )
    rules = fixed_rules(processor, None, task)
    model = _new(task, NARROW)
    pixels, labels = _training_examples(task, rules)
    graphs, parameters, statistics = functional.split(model)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS[task]))
    # Tests compile with less effort; this program runs long enough to be worth it.
    options = {**compiler_options(jax.devices()[:1]), "xla_backend_optimization_level": 3}

    @functools.partial(jax.jit, compiler_options=options)
    def step(parameters, statistics, state, pixels, labels):
        def loss(parameters):
            merged = functional.merge(graphs.train, parameters, statistics)
            return merged(pixels, labels).loss, functional.arrays(merged)[1]

        (_, moved), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(parameters, updates), moved, state

    random, state = np.random.RandomState(0), optimizer.init(parameters)
    for _ in range(_STEPS[task]):
        chosen = random.randint(0, len(pixels), _BATCH[task])
        parameters, statistics, state = step(
            parameters, statistics, state, pixels[chosen], labels[chosen]
        )
    functional.update(model, {**parameters, **statistics})
    model.eval()
    return model, rules


def _training_examples(task, processor):
    with tempfile.TemporaryDirectory() as directory:
        config = read_config(_run_directory(pathlib.Path(directory), task))
    source = open_source(config, config.data.train_split)
    fit = examples._Fit.of(processor, Options(to="stablehlo"))
    chosen = [fit(source[index]) for index in range(len(source))]
    pictures = np.stack([one["image"] for one in chosen])
    return examples.scaled(processor, pictures), np.stack([one["label"] for one in chosen])


def _widened(narrow, task, width):
    """Returns a model of copied channels; what sums up copies is divided by their number."""
    model, times = _new(task, width), round(width / NARROW)
    small = {path: np.asarray(x) for part in functional.arrays(narrow) for path, x in part.items()}
    large = {path: x.shape for part in functional.arrays(model) for path, x in part.items()}
    random = np.random.RandomState(0)
    wide = {}
    for path, x in small.items():
        copied = _copied(x, large[path], times)
        if path.endswith("kernel"):
            copied = copied * (1 + _NOISE * random.normal(0, 1, copied.shape))
        wide[path] = copied.astype(np.float32)
    functional.update(model, wide)
    model.eval()
    return model


def _copied(x, shape, times):
    if x.ndim > 1 and shape[-2] == times * x.shape[-2]:
        x = np.concatenate([x] * times, -2) / times  # the inputs of a kernel
    if shape[-1] == x.shape[-1]:
        return x
    if shape[-1] == times * x.shape[-1]:
        return np.concatenate([x] * times, -1)
    query, key, value = np.split(x, (1, (x.shape[-1] + 1) // 2), -1)  # of the attention
    return np.concatenate([query, *[key] * times, *[value] * times], -1)
