"""Running out of a device's memory: one paragraph with what would help.

No accelerator was at hand: the errors are raised by hand, in the words of XLA.
"""

import sys
import types

import jax
import pytest
from tiny import tiny_config, use_small_model

from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.errors import DeviceMemoryError
from mobilevitv2_jax.training import experiment, loop
from mobilevitv2_jax.training.experiment import prepare
from mobilevitv2_jax.training.memory import estimate, format_bytes
from mobilevitv2_jax.training.out_of_memory import OutOfMemory

ON_A_STEP = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\n"
    "BufferAssignment OOM Debugging."
)
ON_COMPILING = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.41G of 15.75G hbm. Exceeded hbm capacity by 4.66G."
)


@pytest.fixture
def small_model(monkeypatch):
    use_small_model(monkeypatch)


def fail(message):
    def raises(*_, **__):
        raise jax.errors.JaxRuntimeError(message)

    return raises


@pytest.mark.parametrize(
    ("owner", "method", "message", "source"),
    [
        (jax.stages.Compiled, "__call__", ON_A_STEP, "as compiled"),
        (jax.stages.Lowered, "compile", ON_COMPILING, "by estimate"),
    ],
)
def test_a_run_that_is_out_of_memory_ends_with_what_would_help(
    small_model, tmp_path, monkeypatch, capsys, owner, method, message, source
):
    monkeypatch.setattr(owner, method, fail(message))
    run = types.ModuleType("runs")
    run.run = lambda argv: loop.train(tiny_config({"data.threads": 0}), tmp_path / "run", "")
    monkeypatch.setitem(sys.modules, "runs", run)
    monkeypatch.setattr("mobilevitv2_jax.cli.main.VERBS", {"train": ("runs", "trains")})
    with pytest.raises(SystemExit) as leaving:
        main(["train"])
    error = capsys.readouterr().err
    assert leaving.value.code == 1
    assert error.startswith("error: out of memory on a device (cpu): ") and error.count("\n") == 1
    for text in (
        message.split("\n")[0].split(": ", 1)[1].rstrip("."),
        "config.data.batch_size=16, ",
        "config.optimizer.accumulation_steps=1 and",
        "config.model.rematerialize=False",
        source,
        "config.optimizer.accumulation_steps=2 needs about",
        "config.data.batch_size=8 needs as little",
        "config.model.rematerialize=True keeps",
        "config.eval.batch_size than 72",
    ):
        assert text in error


def explain(changes, limit=None):
    with (
        pytest.raises(DeviceMemoryError) as error,
        OutOfMemory(prepare(tiny_config(changes)), limit),
    ):
        fail(ON_A_STEP)()
    return str(error.value)


def test_the_fewest_parts_that_fit_are_named(small_model):
    found = estimate(prepare(tiny_config()))
    fixed = found.total[0] - found.activations[0]
    # Room for what stays and a fifth of the activations, in the nine tenths that are counted on.
    limit = round((fixed + found.activations[0] / 5) / 0.9)
    text = explain({}, limit)
    assert f"(cpu with {format_bytes(limit)})" in text
    left = format_bytes(fixed + found.activations[0] / 8)
    assert f"config.optimizer.accumulation_steps=8 needs about {left}, which should fit" in text
    assert "config.data.batch_size=2 needs as little" in text


def test_the_advice_asks_no_other_process(small_model, monkeypatch):
    """The others wait for a step of this one's, and would never answer."""
    made = prepare(tiny_config())
    monkeypatch.setattr(experiment, "all_processes", fail("asked the others"))
    with pytest.raises(DeviceMemoryError, match="rematerialize=True keeps"), OutOfMemory(made):
        fail(ON_A_STEP)()


def test_nothing_is_promised_where_not_even_the_state_fits(small_model):
    assert "should fit" not in explain({}, limit=1000)


@pytest.mark.slow
def test_groups_of_batch_norm_are_not_cut(small_model):
    text = explain({"model.batch_norm_group_size": 8})
    assert "accumulation_steps=2 needs" in text
    assert "accumulation_steps" not in explain({"model.batch_norm_group_size": 16}).split("Inst")[1]


def test_what_is_used_already_is_not_advised(small_model):
    text = explain({"model.rematerialize": True, "optimizer.accumulation_steps": 16})
    assert "rematerialize=True keeps" not in text and "accumulation_steps=16 and" in text
    assert "Instead" not in text


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("INTERNAL: x"), ValueError("RESOURCE_EXHAUSTED: disk")]
)
def test_other_errors_pass(small_model, error):
    with pytest.raises(type(error)) as passed, OutOfMemory(prepare(tiny_config())):
        raise error
    assert passed.value is error
