"""A model whose accuracy on the embedded digits means something, in a minute."""

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
from mobilevitv2_jax.training.run_directory import read_config

WIDTH, SIDE = 0.5, 32
_STEPS, _BATCH, _LEARNING_RATE = 120, 64, 3e-3


def fitted(directory):
    """Returns the `Subject` of a classifier with the digits for its data."""
    run = _run_directory(directory)
    model, rules = _trained(run)
    return Subject(model, rules, run, f"trained at width {WIDTH}")


def _run_directory(directory):
    """Writes what the data of a run are found by."""
    config = default_config()
    config.data.source, config.data.threads = "digits", 1
    (directory / "config.json").write_text(to_json(config))
    return str(directory)


def _new():
    config = mv.MobileViTV2Config(
        width_multiplier=WIDTH,
        image_size=SIDE,
        id2label={digit: str(digit) for digit in range(10)},
    )
    return mv.MobileViTV2ForImageClassification(config, rngs=nnx.Rngs(0))


def _trained(run):
    """Returns the model, and how its images come in."""
    processor = mv.MobileViTImageProcessor(
        size=SIDE, crop_size=SIDE, resample=2, do_flip_channel_order=False
    )
    rules = fixed_rules(processor, None, "classification")
    model = _new()
    pixels, labels = _training_examples(run, rules)
    graphs, parameters, statistics = functional.split(model)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS))

    @jax.jit
    def step(parameters, statistics, state, pixels, labels):
        def loss(parameters):
            merged = functional.merge(graphs.train, parameters, statistics)
            return merged(pixels, labels).loss, functional.arrays(merged)[1]

        (_, moved), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(parameters, updates), moved, state

    random, state = np.random.RandomState(0), optimizer.init(parameters)
    for _ in range(_STEPS):
        chosen = random.randint(0, len(pixels), _BATCH)
        parameters, statistics, state = step(
            parameters, statistics, state, pixels[chosen], labels[chosen]
        )
    functional.update(model, {**parameters, **statistics})
    model.eval()
    return model, rules


def _training_examples(run, processor):
    config = read_config(run)
    source = open_source(config, config.data.train_split)
    fit = examples._Fit.of(processor, Options(to="stablehlo"))
    chosen = [fit(source[index]) for index in range(len(source))]
    pictures = np.stack([one["image"] for one in chosen])
    return examples.scaled(processor, pictures), np.stack([one["label"] for one in chosen])
