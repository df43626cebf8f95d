"""The learning rate against the schedule of the original release."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from mobilevitv2_jax.config import default_config
from mobilevitv2_jax.training.schedule import Schedule

IMAGENET = 1_281_167  # training images
IMAGENET_BATCH = 1024

# Width: peak and end of the published recipes, and what ml-cvnets' `cosine.py`, which rounds to
# eight decimals, gives right after the warm-up (epoch 15) and in the last epoch (299).
PUBLISHED = {
    2.0: (0.0020, 0.00020, 0.00198892, 0.00020005),
    1.0: (0.0075, 0.00075, 0.00745845, 0.00075019),
    0.5: (0.0090, 0.00090, 0.00895014, 0.00090022),
}
# Half a unit of the last decimal above, and as much again for float32.
PUBLISHED_TOLERANCE = 1e-8


def imagenet(width=2.0):
    config = default_config()
    config.data.batch_size = IMAGENET_BATCH
    config.schedule.total = "300 epochs"
    config.schedule.warmup = "20000 steps"
    config.schedule.warmup_learning_rate = 1e-6
    config.schedule.learning_rate, config.schedule.min_learning_rate = PUBLISHED[width][:2]
    config.schedule.per_epoch = True
    return Schedule.from_config(config, IMAGENET)


def plain(**changes):
    """Returns a cosine from 1 to 0.1 over 100 steps, with 10 of warm-up from 0.2."""
    return dataclasses.replace(Schedule(100, 10, 10, 0.2, 1.0, 0.1, False), **changes)


def test_imagenet_has_1252_steps_per_epoch_and_375600_in_all():
    schedule = imagenet()
    assert (schedule.steps_per_epoch, schedule.steps, schedule.warmup_steps) == (
        1252,
        375_600,
        20_000,
    )


@pytest.mark.parametrize("width", PUBLISHED)
def test_the_rates_of_the_original_release_are_met(width):
    _, _, after_warmup, last = PUBLISHED[width]
    schedule = imagenet(width)
    for step in (20_000, 16 * 1252 - 1):
        assert float(schedule(step)) == pytest.approx(after_warmup, abs=PUBLISHED_TOLERANCE)
    for step in (299 * 1252, 300 * 1252 - 1):
        assert float(schedule(step)) == pytest.approx(last, abs=PUBLISHED_TOLERANCE)


def test_every_step_of_imagenet_has_the_rate_of_its_epoch_when_compiled():
    schedule = imagenet()
    steps = np.arange(schedule.steps)
    warmup = 1e-6 + steps * (0.0020 - 1e-6) / 20_000
    cosine = 0.0002 + 0.5 * (0.0020 - 0.0002) * (1 + np.cos(np.pi * (steps // 1252) / 300))
    # Relative to the peak: float32 rounds to 6e-8, a handful of operations to 1e-6. An epoch
    # that began one step off would show as 5e-3 of the difference to the next.
    np.testing.assert_allclose(
        jax.jit(schedule)(steps), np.where(steps < 20_000, warmup, cosine), rtol=0, atol=2e-9
    )


@pytest.mark.parametrize("steps_per_epoch", [83, 41, 331])
def test_an_epoch_begins_on_its_first_step_when_compiled(steps_per_epoch):
    """A product with the rounded inverse of 83 puts 16 of 50 beginnings a step late."""
    steps = 50 * steps_per_epoch
    schedule = plain(steps=steps, steps_per_epoch=steps_per_epoch, warmup_steps=0, per_epoch=True)
    rates = np.asarray(jax.jit(schedule)(np.arange(steps))).reshape(50, steps_per_epoch)
    np.testing.assert_array_equal(rates, rates[:, :1].repeat(steps_per_epoch, 1))
    assert (np.diff(rates[:, 0]) < 0).all()


def test_the_warm_up_is_linear_and_leads_to_the_peak():
    schedule = plain()
    rates = [float(schedule(step)) for step in range(10)]
    # From 0.2, a tenth of the way to 1.0 at each step; float32.
    np.testing.assert_allclose(rates, 0.2 + 0.08 * np.arange(10), rtol=1e-6)


def test_without_a_warm_up_the_cosine_starts_at_the_peak():
    assert float(plain(warmup_steps=0)(0)) == 1.0


def test_by_step_the_cosine_passes_its_middle_and_is_not_shortened_by_the_warm_up():
    schedule = plain()
    for step in (10, 25, 50, 99):
        expected = 0.1 + 0.45 * (1 + math.cos(math.pi * step / 100))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6)  # float32
    assert float(schedule(50)) == pytest.approx(0.55, rel=1e-6)


def test_by_epoch_the_cosine_stands_still_within_an_epoch():
    schedule = plain(per_epoch=True)
    assert len({float(schedule(step)) for step in range(20, 30)}) == 1
    assert float(schedule(30)) < float(schedule(29))


def test_by_epoch_a_run_that_ends_within_an_epoch_still_falls_all_the_time():
    schedule = plain(per_epoch=True, steps=95)
    rates = [float(schedule(step)) for step in range(10, 95, 10)]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)
    assert rates[-1] > 0.1
