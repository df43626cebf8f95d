"""Which devices and cores points that run side by side get."""

import pytest

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.sweep.devices import Host, Slot, make_slots, own_cores

GPUS = Host("gpu", "NVIDIA A100", 4)
CORES = frozenset(range(6))


def test_points_side_by_side_get_disjoint_devices_and_cores():
    assert make_slots(GPUS, 2, {}, CORES) == [
        Slot({"CUDA_VISIBLE_DEVICES": "0,1"}, frozenset({0, 1, 2})),
        Slot({"CUDA_VISIBLE_DEVICES": "2,3"}, frozenset({3, 4, 5})),
    ]


def test_devices_that_are_hidden_from_the_sweep_stay_hidden():
    slots = make_slots(Host("gpu", "", 2), 2, {"CUDA_VISIBLE_DEVICES": "3,GPU-a"}, CORES)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3", "GPU-a"]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_one_at_a_time_has_all_there_is(platform):
    assert make_slots(Host(platform, "", 4), 1, {}, CORES) == [Slot({}, CORES)]


def test_on_the_cpu_the_cores_are_shared_out():
    slots = make_slots(Host("cpu", "cpu", 1), 4, {}, CORES)
    assert [slot.environment for slot in slots] == [{}] * 4
    assert frozenset.union(*(slot.cores for slot in slots)) == CORES
    assert sum(len(slot.cores) for slot in slots) == len(CORES)


@pytest.mark.parametrize(
    ("host", "parallel", "words"),
    [
        (Host("tpu", "TPU v5 lite", 8), 2, "must be 1 on a TPU host"),
        (GPUS, 5, r"at most 4, the number of devices \(NVIDIA A100\), got 5"),
        (Host("cpu", "cpu", 1), 7, "at most 6, the number of processor cores, got 7"),
    ],
)
def test_too_many_at_a_time_are_refused(host, parallel, words):
    with pytest.raises(ConfigError, match=words):
        make_slots(host, parallel, {}, CORES)


def test_this_process_has_cores():
    assert len(own_cores()) >= 1
