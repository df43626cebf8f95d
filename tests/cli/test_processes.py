"""Which process of how many: what options and environment may say together, and what not."""

import pytest

from mobilevitv2_jax.cli import flags, processes
from mobilevitv2_jax.config import ConfigError
from mobilevitv2_jax.training.processes import start

EXPLICIT = ["--coordinator=10.0.0.2:8476", "--num-processes=4", "--process-id=1"]


def read(*argv, **environment):
    values = flags.new()
    processes.define(values)
    flags.parse(values, argv)
    return processes.read(values, environment)


def test_without_options_a_process_is_on_its_own():
    assert read() == (None, None)


def test_explicit_options_are_passed_on_and_nothing_is_guessed():
    arguments, count = read(*EXPLICIT, "--heartbeat-seconds=10")
    assert count == 4
    assert arguments == {
        "coordinator_address": "10.0.0.2:8476",
        "num_processes": 4,
        "process_id": 1,
        "heartbeat_timeout_seconds": 10,
        "cluster_detection_method": "deactivate",
    }


SEVERAL = [
    ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, 2),
    ({"TPU_WORKER_HOSTNAMES": "host-0,host-1", "MEGASCALE_NUM_SLICES": "4"}, 8),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, 2),
    ({"SLURM_STEP_NUM_TASKS": "64"}, 64),
    ({"SLURM_NTASKS": "64", "SLURM_JOB_ID": "7"}, 64),
    ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "64"}, 8),
    ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
    ({"JOB_COMPLETION_INDEX": "0"}, None),
]


@pytest.mark.parametrize(("environment", "count"), SEVERAL)
def test_one_of_several_that_no_option_declares_is_refused_with_both_ways_out(environment, count):
    with pytest.raises(ConfigError) as error:
        read(**environment)
    text = str(error.value)
    assert next(iter(environment)) in text
    assert "--distributed " in text and "--distributed=false" in text


@pytest.mark.parametrize(("environment", "count"), SEVERAL)
def test_what_the_launcher_promises_is_known_with_distributed(environment, count):
    assert read("--distributed", **environment) == ({"heartbeat_timeout_seconds": 30}, count)


@pytest.mark.parametrize(("environment", "count"), SEVERAL)
def test_distributed_false_is_alone_whatever_the_environment_says(environment, count):
    assert read("--distributed=false", **environment) == (None, None)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "64", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "JOB_COMPLETION_INDEX": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_an_environment_with_one_process_is_not_taken_for_several(environment):
    assert read(**environment) == (None, None)


@pytest.mark.parametrize(
    ("argv", "environment", "message"),
    [
        (EXPLICIT[:2], {}, "go together; without --process-id they"),
        (EXPLICIT[2:], {}, "without --coordinator, --num-processes they"),
        ([*EXPLICIT, "--distributed"], {}, "exclude each other"),
        ([*EXPLICIT, "--process-id=4"], {}, "at least 0 and below 4, got 4"),
        ([*EXPLICIT, "--process-id=-1"], {}, "at least 0 and below 4, got -1"),
        ([*EXPLICIT, "--num-processes=0"], {}, "at least 1, got 0"),
        ([*EXPLICIT, "--coordinator=host"], {}, "must be HOST:PORT, .* got 'host'"),
        ([*EXPLICIT, "--heartbeat-seconds=0"], {}, "at least 1, got 0"),
        (EXPLICIT, {"SLURM_NTASKS": "8"}, "--num-processes is 4, but SLURM_NTASKS=8"),
        (EXPLICIT, {"SLURM_STEP_NUM_TASKS": "8"}, "--num-processes is 4, but .*TASKS=8"),
    ],
)
def test_options_that_contradict_are_refused(argv, environment, message):
    with pytest.raises(ConfigError, match=message):
        read(*argv, **environment)


@pytest.mark.parametrize("found", [1, 3])
def test_another_number_of_processes_than_the_launcher_promises_ends_the_job(monkeypatch, found):
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: None)
    monkeypatch.setattr("jax.process_count", lambda: found)
    with pytest.raises(ConfigError, match=f"promises 2 processes, and JAX has found {found}"):
        start({}, promised=2)
    start({}, promised=found)
    start({}, promised=None)


@pytest.mark.parametrize("argv", [EXPLICIT, " ".join(EXPLICIT).replace("=", " ").split()])
def test_the_command_to_continue_with_names_no_process(argv):
    rest = ["--workdir", "runs/a", "--distributed", "--config.data.batch_size=4"]
    assert processes.without([*rest[:2], *argv, *rest[2:]]) == rest
