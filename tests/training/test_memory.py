"""Memory of a step, estimated; and the rules that `inspect` names."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from tiny import tiny_config, use_small_model

from mobilevitv2_jax.models.summary import summarize
from mobilevitv2_jax.training.experiment import prepare
from mobilevitv2_jax.training.inspection import rules
from mobilevitv2_jax.training.memory import bytes_per_device, estimate, format_bytes
from mobilevitv2_jax.training.program import lower_train_step
from mobilevitv2_jax.training.schedule import Schedule


@pytest.fixture
def small_model(monkeypatch):
    use_small_model(monkeypatch)


def test_state_and_batch_are_what_the_compiled_step_takes(small_model):
    config = tiny_config()
    experiment = prepare(config)
    found = estimate(experiment)
    compiled = lower_train_step(experiment, Schedule.from_config(config, 1437)).compile()
    taken = compiled.memory_analysis().argument_size_in_bytes
    state = found.parameters + found.optimizer + found.average
    # The step's own counters, its key, and the alignment of every argument.
    assert state + found.batch <= taken <= state + found.batch + 64 * 50
    least, most = found.activations
    assert 0 < least <= most
    assert least >= 16 * 8 * 8 * 8 * 4  # of 16 images the stem's output alone


def test_twice_the_batch_needs_twice_the_activations_and_no_more_state(small_model):
    once, twice = (estimate(prepare(tiny_config({"data.batch_size": size}))) for size in (16, 32))
    assert twice.activations[0] == 2 * once.activations[0]
    # Parameters are kept for the gradient, too: once.
    assert 1.8 * once.activations[1] < twice.activations[1] < 2 * once.activations[1]
    same = {"activations": None, "batch": None}
    assert dataclasses.replace(once, **same) == dataclasses.replace(twice, **same)


def test_half_of_the_batch_at_a_time_needs_half_of_the_activations(small_model):
    once, parts = (
        estimate(prepare(tiny_config({"optimizer.accumulation_steps": number})))
        for number in (1, 2)
    )
    assert parts.activations[0] == once.activations[0] / 2
    assert (parts.gradients, parts.batch) == (2 * once.gradients, once.batch)


@pytest.mark.slow
def test_rematerialisation_needs_less():
    usual, less = (
        estimate(prepare(tiny_config({"model.rematerialize": value}))).activations[1]
        for value in (False, True)
    )
    assert less < usual / 4


def test_of_a_split_array_a_device_holds_its_part():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))

    def array(spec):
        return jax.ShapeDtypeStruct((64, 3), np.float32, sharding=NamedSharding(mesh, spec))

    tree = {"split": array(jax.P("fsdp")), "whole": array(jax.P())}
    assert bytes_per_device(tree) == 64 * 3 * 4 // 4 + 64 * 3 * 4


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (1536, "1.54 kB"), (61.6e9, "61.6 GB"), (2.5e6, "2.5 MB")]
)
def test_bytes_are_written_in_powers_of_a_thousand(count, text):
    assert format_bytes(count) == text


@pytest.mark.slow
def test_the_stages_in_which_odd_sizes_matter_are_those_of_the_model():
    config = tiny_config({"data.image_size": 72})
    experiment = prepare(config)
    text = rules(experiment)["odd sizes"]
    assert text == (
        "resize (at 72 pixels it acts in stage 3 (9 x 9) and stage 4 (5 x 5) and stage 5 (3 x 3))"
    )
    outputs = [row.output[:2] for row in summarize(experiment.abstract_model, 72).rows]
    assert outputs[3:6] == [(10, 10), (6, 6), (4, 4)]  # even, for the patches


def test_dilation_is_told_by_its_stages():
    config = tiny_config({"model.output_stride": 16, "model.depthwise": "convolution"})
    found = rules(prepare(config))
    assert "output stride 16: stage 5 is dilated, with the local" in found["dilation"]
    assert found["depthwise"] == "convolution"
