"""One device and several: what is refused, and that they compute the same.

Run as a program, this file calls one of its functions on the devices of a process of its own, and
prints what it returns.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from states import bytes_of
from tiny import noise_batch, tiny_config, use_small_model

from mobilevitv2_jax.config import ConfigError
from mobilevitv2_jax.models.functional import arrays, merge
from mobilevitv2_jax.training import mesh as mesh_module
from mobilevitv2_jax.training.experiment import prepare
from mobilevitv2_jax.training.mesh import (
    check_batch_size,
    loader_share,
    make_mesh,
    mesh_of,
    peak_tflops,
    put_batch,
    replicated,
)
from mobilevitv2_jax.training.program import lower_train_step
from mobilevitv2_jax.training.schedule import Schedule
from mobilevitv2_jax.weights.checkpoint import Checkpoints


class FakeMesh:
    """A mesh of as many devices as a test asks for."""

    def __init__(self, size, kind="cpu"):
        self.size = size
        self.devices = np.array([type("Device", (), {"device_kind": kind})()] * size)


def test_more_devices_than_there_are_is_refused_with_the_number_found():
    available = len(jax.devices())
    message = rf"config\.mesh\.devices must be at most {available}, .*, got {available + 1}"
    with pytest.raises(ConfigError, match=message):
        make_mesh(available + 1)


def test_zero_devices_are_all_of_them():
    assert make_mesh(0).size == len(jax.devices())


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(100, "use 96 or 104,"), (7, "use 8,"), (8 * 9 + 1, "use 72 or 80,")]
)
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(batch_size, sizes):
    with pytest.raises(ConfigError) as error:
        check_batch_size("data.batch_size", batch_size, FakeMesh(8))
    text = str(error.value)
    assert "config.data.batch_size must be divisible by the 8 devices" in text
    assert f"got {batch_size}" in text and sizes in text


def test_each_part_of_an_accumulated_batch_has_to_be_divisible():
    check_batch_size("data.batch_size", 96, FakeMesh(8), parts=3)
    with pytest.raises(
        ConfigError, match=r"the 8 devices times the 3 accumulation steps.*72 or 96"
    ):
        check_batch_size("data.batch_size", 80, FakeMesh(8), parts=3)


def test_the_devices_of_a_process_stand_side_by_side_in_the_order_of_the_processes(monkeypatch):
    # As in a pod of 16 x 16 chips, where the hosts interleave.
    owners = [0, 0, 2, 2, 1, 1, 3, 3] * 2
    devices = [Device(process, number) for number, process in enumerate(owners)]
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    for fsdp in (1, 4):
        mesh = mesh_of(devices, fsdp)
        assert [device.process_index for device in mesh.devices.flat] == sorted(owners)
        for index in range(4):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            assert loader_share(mesh) == (index, 4)
    assert mesh.shape == {"data": 4, "fsdp": 4}


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of some process."""

    process_index: int
    id: int
    platform = device_kind = "cpu"
    client = None


def test_a_batch_that_divides_is_accepted():
    check_batch_size("eval.batch_size", 96, FakeMesh(8))


@pytest.mark.parametrize("key", ["data.batch_size", "eval.batch_size"])
def test_an_experiment_checks_both_of_its_batches(key, monkeypatch):
    monkeypatch.setattr(
        "mobilevitv2_jax.training.experiment.make_mesh", lambda devices, fsdp: FakeMesh(5)
    )
    sizes = {"data.batch_size": 20, "eval.batch_size": 20, key: 21}
    with pytest.raises(ConfigError, match=rf"config\.{key} .* got 21: use 20 or 25"):
        prepare(tiny_config(sizes))


def test_a_batch_is_put_on_the_mesh_as_it_is():
    batch = noise_batch()
    arrays = put_batch(batch, make_mesh(1))
    for name, value in batch.items():
        np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 8 * 197.0), ("TPU v5", 8 * 459.0), ("cpu", None)]
)
def test_the_peak_is_that_of_the_most_specific_name(kind, peak):
    assert peak_tflops(FakeMesh(8, kind)) == peak


# SmallModel's largest kernels have 384 and 480 bytes.
SPLIT = {"mesh.fsdp": 4, "mesh.fsdp_smallest_bytes": 256}

# Every image darker than the next: what is in a device's own shard tells little of the batch.
RAMP = (np.arange(1, 17, dtype=np.float32) / 16).reshape(-1, 1, 1, 1)


def one_step(changes, batch=None):
    """Returns loss, gradients and statistics of one step, and how many leaves were split."""
    # The trace of plain SGD is, after its first step, the gradient itself.
    sgd = {"name": "sgd", "weight_decay": 0.0, "gradient_clip": 0.0}
    options = {f"optimizer.{name}": value for name, value in sgd.items()}
    config = tiny_config({**options, **changes})
    experiment = prepare(config)
    mesh = experiment.mesh
    step = lower_train_step(experiment, Schedule.from_config(config, 1437)).compile()
    state = jax.device_put(experiment.initial_state(), experiment.state_shardings)
    batch = put_batch(batch or noise_batch(), mesh)
    rows = [len(shard.data) for shard in batch["image"].addressable_shards]
    assert rows == [16 // mesh.size] * mesh.size
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    state, metrics = step(state, batch, key)
    # What each device holds, not what an annotation says.
    split = [leaf.addressable_shards[0].data.size < leaf.size for leaf in jax.tree.leaves(state)]
    loss, gradients = metrics["loss"], state.optimizer[1].trace
    return *jax.device_get((loss, gradients, state.statistics)), sum(split)


def relative_differences(left, right):
    """Returns the largest difference of any leaf, by that leaf's and by all leaves' largest value.

    What cancels to nearly 0 has no digits to agree on: a leaf counts as at least 1e-3 of the
    largest.
    """
    apart = {path: np.abs(x - right[path]).max() for path, x in left.items()}
    largest = {path: np.abs(x).max() for path, x in left.items()}
    top = max(largest.values())
    relative = [apart[path] / max(largest[path], 1e-3 * top) for path in left]
    return float(max(relative)), float(max(apart.values()) / top)


def compare(model, dtype, changes=None):
    """Returns how far one device and all are apart: loss, gradients and statistics."""
    if model == "small":
        use_small_model(pytest.MonkeyPatch())
    types = {"model.dtype": dtype, "model.param_dtype": dtype, "model.ffn_dropout": 0.1}
    types |= {"augment.mixup": 0.2, "augment.cutmix": 1.0}
    several = {"mesh.devices": 0, **(changes or {})}
    loss, *one, _ = one_step({**types, "mesh.devices": 1})
    other_loss, *other, leaves = one_step(types | several)
    found = {"loss": abs(float(loss - other_loss)), "split": leaves}
    for kind, left, right in zip(("gradients", "statistics"), one, other, strict=True):
        found[kind], found[f"{kind} overall"] = relative_differences(left, right)
    return found


def compare_statistics():
    """Returns how far the statistics of one device are from those of all, by the group's size.

    Under "shard" stands what they would be apart by if every device took its own.
    """
    batch = noise_batch()
    batch["image"] = (batch["image"] * RAMP).astype(np.uint8)

    def statistics(devices, group_size):
        changes = {"mesh.devices": devices, "model.batch_norm_group_size": group_size}
        experiment = prepare(tiny_config(changes))

        @jax.jit
        def forward(state, images):
            model = merge(experiment.graphs.train, state.parameters, state.statistics)
            model(images.astype("float32") / 255)
            return arrays(model)[1]

        state = jax.device_put(experiment.initial_state(), experiment.state_shardings)
        return jax.device_get(forward(state, put_batch(batch, experiment.mesh)["image"]))

    whole, own = statistics(1, None), statistics(1, 16 // jax.device_count())
    found = {"shard": relative_differences(whole, own)[0]}
    for name, group_size in (("whole", None), ("groups", 8)):
        one = whole if group_size is None else statistics(1, group_size)
        found[name] = relative_differences(one, statistics(0, group_size))[0]
    return found


def digest(state):
    """Returns a hash of all bits of a state."""
    return hashlib.sha256(repr(bytes_of(state)).encode()).hexdigest()


def save_and_restore(directory):
    """Saves a state of eight devices, restores it on one, saves that, and restores it on four."""
    digests, splits = [], []
    state = None
    for step, devices, changes in ((1, 8, SPLIT), (2, 1, {}), (3, 4, SPLIT)):
        experiment = prepare(tiny_config({"mesh.devices": devices, **changes}))
        with Checkpoints(directory) as checkpoints:
            if state is None:
                # No leaf equal to another: moments and averages start as 0 and as copies.
                leaves, structure = jax.tree.flatten(experiment.initial_state())
                leaves = [x + x.dtype.type(number) for number, x in enumerate(leaves)]
                state = jax.tree.unflatten(structure, leaves)
                state = jax.device_put(state, experiment.state_shardings)
            else:
                state, _ = checkpoints.restore(step - 1, experiment.abstract_state)
            checkpoints.save(step, state, {}, None)
        digests.append(digest(state))
        splits.append(sum(not x.is_fully_replicated for x in jax.tree.leaves(state)))
    return {"digests": digests, "splits": splits}


def on_eight(directory):
    """Returns all that a test in a process with eight devices asks for: starting one takes time."""
    use_small_model(pytest.MonkeyPatch())
    return {
        "step": compare("small", "float32", SPLIT),
        "statistics": compare_statistics(),
        "checkpoint": save_and_restore(directory),
    }


def in_process(devices, *arguments, x64=False):
    """Runs this file in a process with so many devices, and returns what it prints."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_X64": str(int(x64)),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == devices
    return found


@pytest.fixture(scope="module")
def checkpoints_of_eight(tmp_path_factory):
    return tmp_path_factory.mktemp("eight") / "checkpoints"


@pytest.fixture(scope="module")
def eight(checkpoints_of_eight):
    """What a process with eight devices found; see `on_eight`."""
    return in_process(8, "on_eight", str(checkpoints_of_eight))


def differences(devices, model, dtype):
    """Runs `compare` in a process with so many devices."""
    return in_process(devices, "compare", model, dtype, x64=dtype == "float64")


@pytest.mark.parametrize(
    ("shape", "dtype", "spec"),
    [
        ((3, 3, 64, 128), "float32", (None, None, None, "fsdp")),  # the largest dimension
        ((256, 130), "float32", ("fsdp",)),
        ((130, 128), "float32", (None, "fsdp")),  # the largest that four devices divide
        ((130, 130), "float32", ()),
        ((64, 63), "float32", ()),  # 16,128 bytes
        ((64, 64), "float32", ("fsdp",)),  # 16,384
        ((64, 64), "bfloat16", ()),
        ((), "int32", ()),
    ],
)
def test_a_large_array_is_split_along_its_largest_dimension_that_divides(shape, dtype, spec):
    class Mesh:
        shape = {"data": 2, "fsdp": 4}

    array = jax.ShapeDtypeStruct(shape, np.dtype(dtype))
    assert mesh_module._split(array, Mesh, 2**14) == jax.P(*spec)
    Mesh.shape = {"data": 8}
    assert mesh_module._split(array, Mesh, 0) == jax.P()


def test_an_axis_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(
        ConfigError, match=r"config\.mesh\.fsdp must be a divisor of the 1 .* got 2"
    ):
        make_mesh(1, fsdp=2)


@pytest.mark.slow
def test_four_devices_take_the_step_of_one():
    found = differences(4, "small", "float32")
    # Float32 sums in another order; measured: 0, 5e-6 and 5e-7. A BatchNorm over its own shard
    # would be off by several percent, a dropout of its own by more.
    assert found["loss"] <= 1e-6
    assert found["gradients"] <= 1e-5
    assert found["statistics"] <= 1e-6


@pytest.mark.slow
def test_eight_devices_with_split_parameters_take_the_step_of_one(eight):
    found = eight["step"]
    # Three kernels, their momenta and their averages: of each, a device holds a fourth.
    assert found["split"] == 9
    # As above; measured: 0, 4e-6 and 3e-7.
    assert found["loss"] <= 1e-6
    assert found["gradients"] <= 1e-5
    assert found["statistics"] <= 1e-6


@pytest.mark.slow
def test_batch_norm_sees_the_whole_batch_or_its_groups_on_any_number_of_devices(eight):
    found = eight["statistics"]
    assert found["whole"] <= 1e-6
    assert found["groups"] <= 1e-6  # groups of 8 images, each on four devices
    assert found["shard"] >= 1e-2  # of a BatchNorm over each device's own two images


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_is_restored_bit_by_bit_on_one_and_then_on_four(
    eight, checkpoints_of_eight, monkeypatch
):
    found = eight["checkpoint"]
    assert found["splits"] == [12, 0, 12]  # three kernels, their two moments, their average
    assert len(set(found["digests"])) == 1
    use_small_model(monkeypatch)
    with Checkpoints(checkpoints_of_eight, read_only=True) as checkpoints:
        # Here there is one device, and never were more.
        state, _ = checkpoints.restore(3, prepare(tiny_config()).abstract_state)
    assert digest(state) == found["digests"][0]


@pytest.mark.slow
def test_eight_devices_take_the_step_of_one_with_the_real_model():
    found = differences(8, "real", "float32")
    # Against the largest of all, because some gradients and means of this model are 0 but for
    # rounding (those in front of a BatchNorm). Measured: 0, 5e-6 and 6e-8.
    assert found["loss"] <= 1e-6
    assert found["gradients overall"] <= 1e-5
    assert found["statistics overall"] <= 1e-6


@pytest.mark.slow
def test_eight_devices_take_the_step_of_one_leaf_by_leaf_in_double_precision():
    found = differences(8, "real", "float64")
    # That the differences in float32 are rounding shows here. Measured: 0, 1.5e-13 and 3e-14.
    assert found["loss"] <= 1e-11
    assert found["gradients"] <= 1e-11
    assert found["statistics"] <= 1e-11


if __name__ == "__main__":
    result = globals()[sys.argv[1]](*sys.argv[2:])
    sys.stdout.write(json.dumps({"devices": jax.device_count(), **result}) + "\n")
