"""Checkpoints: what is kept, what comes back, and what is refused."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import object_store
import optax
import pytest
from etils import epath
from object_store import ObjectStore

from mobilevitv2_jax.errors import CheckpointError
from mobilevitv2_jax.weights.checkpoint import Checkpoints

# What a failed restore leaves behind is complained about when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    parameters: dict
    optimizer: tuple


def make_state(step):
    random = np.random.RandomState(step)
    parameters = {
        "backbone.stages.0.kernel": jnp.asarray(random.randn(64, 32), jnp.float32),
        "half": jnp.asarray(random.randn(5), jnp.bfloat16),
        "odd": jnp.asarray([np.nan, np.inf, -0.0, 1e-45], jnp.float32),
    }
    optimizer = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1))
    return State(jnp.asarray(step, jnp.int32), parameters, optimizer.init(parameters))


def abstract(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def bits(state):
    return {
        jax.tree_util.keystr(path): (leaf.dtype, np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def save_all(directory, metrics, **options):
    """Saves one checkpoint for each of the metrics, at steps 1, 2, …, and returns their steps."""
    with Checkpoints(directory, best_metric="top1", **options) as checkpoints:
        first = (checkpoints.latest_step() or 0) + 1
        for step, value in enumerate(metrics, start=first):
            values = None if value is None else {"top1": value, "loss": 1.0}
            checkpoints.save(step, make_state(step), {"clock": {"steps": step}}, values)
    with Checkpoints(directory, best_metric="top1", read_only=True) as checkpoints:
        return checkpoints.steps()


def restore(directory, step, shape_of=None):
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.restore(step, abstract(shape_of or make_state(step)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, to be copied before anything is done to them."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save_all(directory, [0.25, 0.5])
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_a_state_comes_back_bit_for_bit_with_its_metadata(saved):
    for step in (1, 2):
        state, metadata = restore(saved, step)
        assert bits(state) == bits(make_state(step))
        assert metadata == {"clock": {"steps": step}}


def test_what_is_saved_is_the_state_at_the_call_even_if_it_is_donated_after(tmp_path):
    state = make_state(3)
    expected = bits(state)
    overwrite = jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, state, {}, None)
        overwrite(state)
    assert bits(restore(tmp_path / "checkpoints", 3)[0]) == expected


def test_a_save_returns_before_it_is_written(tmp_path, monkeypatch):
    may_finish = threading.Event()
    rename = type(BUCKET).rename

    def wait(self, target):
        assert may_finish.wait(60)
        return rename(self, target)

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        monkeypatch.setattr(type(BUCKET), "rename", wait)  # what orbax commits with
        checkpoints.save(1, make_state(1), {}, None)
        assert not (tmp_path / "checkpoints" / "00000001").exists()
        may_finish.set()
    assert bits(restore(tmp_path / "checkpoints", 1)[0]) == bits(make_state(1))


def test_the_latest_and_the_best_are_kept(tmp_path):
    steps = save_all(tmp_path / "c", [0.1, 0.8, 0.2, 0.3, 0.4], keep_latest=2, keep_best=1)
    assert steps == [2, 4, 5]


def test_the_best_survives_a_restart_and_what_comes_after_it(tmp_path):
    save_all(tmp_path / "c", [0.1, 0.8, 0.2])
    assert save_all(tmp_path / "c", [0.3, 0.4, 0.5]) == [2, 5, 6]
    with Checkpoints(tmp_path / "c", best_metric="top1") as checkpoints:
        assert checkpoints.best_step() == 2
        assert checkpoints.latest_step() == 6
    assert bits(restore(tmp_path / "c", 2)[0]) == bits(make_state(2))


def test_a_checkpoint_without_metrics_is_kept_as_the_latest_but_never_as_the_best(tmp_path):
    assert save_all(tmp_path / "c", [0.1, None, None, None]) == [1, 3, 4]
    with Checkpoints(tmp_path / "c", best_metric="top1", read_only=True) as checkpoints:
        assert checkpoints.best_step() == 1


def test_metrics_that_are_found_later_count_and_are_checked(tmp_path):
    save_all(tmp_path / "c", [0.1, None])
    with Checkpoints(tmp_path / "c", best_metric="top1") as checkpoints:
        assert checkpoints.best_step() == 1 and not checkpoints.has_metrics(2)
        checkpoints.add_metrics(2, {"top1": 0.9})
        assert checkpoints.best_step() == 2 and checkpoints.has_metrics(2)
    # Kept as the best, by those that come after it.
    assert save_all(tmp_path / "c", [0.2, 0.3, 0.4]) == [2, 4, 5]
    assert bits(restore(tmp_path / "c", 2)[0]) == bits(make_state(2))
    truncate(tmp_path / "c" / "00000002" / "metrics" / "metrics")
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert checkpoints.steps() == [4, 5]


def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path):
    nan = float("nan")
    assert save_all(tmp_path / "c", [0.1, nan, 0.3, nan, nan, nan]) == [3, 5, 6]
    with Checkpoints(tmp_path / "c", best_metric="top1", read_only=True) as checkpoints:
        assert checkpoints.best_step() == 3


@pytest.mark.parametrize("metrics", [[None, None], [float("nan"), float("nan")]])
def test_where_nothing_can_be_ranked_there_is_no_best(tmp_path, metrics):
    save_all(tmp_path / "c", metrics)
    with Checkpoints(tmp_path / "c", best_metric="top1", read_only=True) as checkpoints:
        assert checkpoints.best_step() is None


def test_a_new_directory_has_no_steps(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest_step()) == ([], None)
        assert checkpoints.best_step() is None


@pytest.mark.parametrize("name", ["step_100.ckpt", "100/", "step_100/", "0000100/"])
def test_a_directory_of_something_else_is_refused_by_name(tmp_path, name):
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("")
    with pytest.raises(CheckpointError, match=rf"{name.strip('/')} but no checkpoint of this form"):
        Checkpoints(tmp_path)


def test_a_save_that_was_cut_off_is_not_a_step(directory):
    shutil.copytree(directory / "00000002", directory / "00000003.orbax-checkpoint-tmp-17")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.latest_step() == 2


def test_a_first_save_that_was_cut_off_does_not_keep_a_run_from_starting_anew(tmp_path):
    (tmp_path / "00000003.orbax-checkpoint-tmp-17").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []


def test_a_process_that_dies_while_its_first_checkpoint_gets_its_manifest_may_start_anew(
    directory, tmp_path
):
    shutil.rmtree(directory / "00000001")
    remove(directory / "00000002" / "checksums.json")
    told = []
    with Checkpoints(directory, tell=told.append) as checkpoints:
        assert checkpoints.steps() == []
    assert "DAMAGED CHECKPOINT: step 2" in told[0] and "checksums.json" in told[0]
    assert (tmp_path / "damaged" / "00000002").is_dir()


def test_a_reader_takes_the_last_step_of_a_training_for_unfinished_and_not_for_damaged(directory):
    remove(directory / "00000002" / "checksums.json")
    told = []
    with Checkpoints(directory, read_only=True, tell=told.append) as checkpoints:
        assert checkpoints.steps() == [1]
    assert len(told) == 1 and "step 2 of" in told[0] and "still being written" in told[0]


def test_a_reader_says_nothing_of_a_step_that_the_training_has_removed(directory, monkeypatch):
    damage = Checkpoints.damage

    def damage_of(self, step):
        if step == 1:
            shutil.rmtree(directory / "00000001")
        return damage(self, step)

    monkeypatch.setattr(Checkpoints, "damage", damage_of)
    told = []
    with Checkpoints(directory, read_only=True, tell=told.append) as checkpoints:
        assert checkpoints.steps() == [2]
    assert told == []


def test_a_first_checkpoint_that_was_whole_once_is_not_started_anew_over(directory):
    shutil.rmtree(directory / "00000001")
    truncate(next(path for path in (directory / "00000002" / "state").rglob("d/*")))
    with pytest.raises(CheckpointError, match=r"every checkpoint of .* is damaged \(step 2"):
        Checkpoints(directory)


def test_a_step_that_is_not_there_is_refused_with_those_that_are(saved):
    with pytest.raises(CheckpointError, match=r"no step 7; it has \[1, 2\]"):
        restore(saved, 7)


def test_a_truncated_payload_is_refused_with_the_step(directory):
    payload = [path for path in (directory / "00000002" / "state").rglob("d/*") if path.is_file()]
    assert payload
    for path in payload:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="step 2 of .* is damaged: .* bytes, and should have"):
        restore(directory, 2)
    assert bits(restore(directory, 1)[0]) == bits(make_state(1))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    if not data:
        return False
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    return True


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return bool(data)


def remove(path):
    path.unlink()
    return True


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
def test_damage_to_any_file_of_a_step_is_found_and_the_file_named(directory, damage):
    step = directory / "00000002"
    names = [str(path.relative_to(step)) for path in sorted(step.rglob("*")) if path.is_file()]
    assert len(names) > 5 and "checksums.json" in names
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.damage(2) is None
        for name in names:
            original = (step / name).read_bytes()
            if not damage(step / name):
                continue  # an empty file has no bits
            found = checkpoints.damage(2)
            # A flipped bit of the manifest itself may show in what it says of another file.
            assert found and (name in found or name == "checksums.json"), name
            (step / name).write_bytes(original)
        assert checkpoints.damage(2) is None


@pytest.mark.parametrize("part", ["state", "metrics", "metadata", "_CHECKPOINT_METADATA"])
def test_the_good_step_before_a_damaged_one_is_used_loudly_and_nothing_is_lost(directory, part):
    files = sorted(path for path in (directory / "00000002").rglob("*") if path.is_file())
    payload = next(path for path in files if part in str(path.relative_to(directory)))
    truncate(payload)
    told = []
    with Checkpoints(directory, best_metric="top1", tell=told.append) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest_step()) == ([1], 1)
        assert checkpoints.best_step() == 1
        state, _ = checkpoints.restore(1, abstract(make_state(1)))
        assert bits(state) == bits(make_state(1))
        checkpoints.save(2, state, {}, None)  # training comes to the step again
    assert "DAMAGED CHECKPOINT: step 2" in told[0] and payload.name in told[0]
    moved = directory.parent / "damaged" / "00000002"
    assert told[1] == f"moved step 2 to {moved}"
    assert (moved / payload.relative_to(directory / "00000002")).exists()
    with Checkpoints(directory, tell=told.append) as checkpoints:
        assert checkpoints.steps() == [1, 2]
    assert len(told) == 2


def test_two_damaged_attempts_at_a_step_are_both_kept(directory):
    (directory.parent / "damaged" / "00000002").mkdir(parents=True)
    remove(directory / "00000002" / "checksums.json")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.steps() == [1]
    assert (directory.parent / "damaged" / "00000002-1").is_dir()


def test_where_every_step_is_damaged_nothing_is_moved_and_nothing_begins_anew(directory):
    for name in ("00000001", "00000002"):
        remove(directory / name / "checksums.json")
    told = []
    with pytest.raises(CheckpointError, match=r"every checkpoint of .* is damaged \(step 2"):
        Checkpoints(directory, tell=told.append)
    assert len(told) == 2
    assert sorted(path.name for path in directory.iterdir()) == ["00000001", "00000002"]


BUCKET = epath.Path(ObjectStore.ROOT) / "run" / "checkpoints"


@pytest.fixture(scope="module")
def objects():
    """The objects of three checkpoints, to be put into a store before anything is done to them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        object_store.install(monkeypatch)
        assert save_all(BUCKET, [0.1, 0.8, 0.2, 0.3], keep_latest=2) == [2, 3, 4]
        return {name: file.getvalue() for name, file in ObjectStore.store.items()}


@pytest.fixture
def bucket(objects, monkeypatch):
    """Checkpoints on an object store, which cannot append, rename or move."""
    object_store.install(monkeypatch)
    ObjectStore().pipe(objects)
    return BUCKET


def test_on_an_object_store_checkpoints_are_written_whole_verified_and_nowhere_else(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    state, metadata = restore(bucket, 2)
    assert bits(state) == bits(make_state(2)) and metadata == {"clock": {"steps": 2}}
    (payload,) = {name for name in ObjectStore.names() if "/00000004/state/d/" in name}
    (epath.Path(ObjectStore.ROOT) / payload).write_bytes(b"short")
    told = []
    with Checkpoints(bucket, best_metric="top1", tell=told.append) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([2, 3], 2)
    assert payload.rpartition("/")[2] in told[0]
    names = ObjectStore.names()
    assert payload.replace("checkpoints", "damaged") in names
    assert not any("checkpoints/00000004" in name for name in names)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_was_cut_off_on_an_object_store_is_not_a_step(bucket):
    for name in ("checksums.json", "commit_success.txt"):
        (bucket / "00000004" / name).unlink()
    told = []
    with Checkpoints(bucket, best_metric="top1", tell=told.append) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        checkpoints.save(4, make_state(4), {}, None)  # training comes to the step again
    assert bits(restore(bucket, 4)[0]) == bits(make_state(4)) and told == []


def test_a_first_save_that_was_cut_off_on_an_object_store_is_started_anew_over(bucket):
    for name in ("00000002", "00000003"):
        (bucket / name).rmtree()
    (bucket / "00000004" / "commit_success.txt").unlink()
    with Checkpoints(bucket) as checkpoints:
        assert checkpoints.steps() == []


@pytest.mark.parametrize("part", ["/state/d/", "/metrics/metrics", "/metadata/metadata"])
@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
def test_reading_only_passes_over_a_damaged_step_and_leaves_it_where_it_is(directory, part, damage):
    files = sorted(path for path in (directory / "00000002").rglob("*") if path.is_file())
    payload = next(path for path in files if part in str(path))
    damage(payload)
    with Checkpoints(directory, best_metric="top1", read_only=True) as checkpoints:
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (1, 1)
        with pytest.raises(CheckpointError, match=f"step 2 of .* is damaged: .*{payload.name}"):
            checkpoints.restore(2, abstract(make_state(2)))
    assert (directory / "00000002").is_dir() and not (directory.parent / "damaged").exists()


def test_too_little_free_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"has 0\.001 MB of free space, and a checkpoint needs 0\.05"
        ):
            checkpoints.save(1, make_state(1), {}, None)
        assert list((tmp_path / "c").iterdir()) == []


# The process may write no file of more than 4 KiB: a write fails halfway, as on a full disk.
FULL_DISK = """
import resource, signal, sys
sys.path[:0] = ["tests", "tests/weights"]
import test_checkpoint as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with t.Checkpoints(sys.argv[1], best_metric="top1") as checkpoints:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        checkpoints.save(3, t.make_state(3), {}, None)
        checkpoints.save(4, t.make_state(4), {}, None)
    except t.CheckpointError as error:
        sys.exit(f"REFUSED {error}")
"""


@pytest.mark.slow
def test_a_write_that_fails_ends_the_run_and_older_steps_stay_whole(directory):
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, directory],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1
    assert f"REFUSED saving to {directory} failed: " in run.stderr
    with Checkpoints(directory, tell=pytest.fail) as checkpoints:
        assert checkpoints.steps() == [1, 2]
    for step in (1, 2):
        assert bits(restore(directory, step)[0]) == bits(make_state(step))


def wrong_shape(state):
    parameters = {**state.parameters, "half": jnp.zeros(6, jnp.bfloat16)}
    return dataclasses.replace(state, parameters=parameters)


def wrong_type(state):
    parameters = {**state.parameters, "half": jnp.zeros(5, jnp.float32)}
    return dataclasses.replace(state, parameters=parameters)


def wrong_type_in_the_optimizer(state):
    adam, decay = state.optimizer
    moments = {**adam.mu, "odd": jnp.zeros(4, jnp.bfloat16)}
    return dataclasses.replace(state, optimizer=(adam._replace(mu=moments), decay))


def one_more(state):
    return dataclasses.replace(state, parameters={**state.parameters, "new": jnp.zeros(3)})


def one_less(state):
    parameters = {path: value for path, value in state.parameters.items() if path != "half"}
    return dataclasses.replace(state, parameters=parameters)


@pytest.mark.parametrize(
    "change", [wrong_shape, wrong_type, wrong_type_in_the_optimizer, one_more, one_less]
)
def test_a_state_of_another_model_is_refused_with_the_step(saved, change):
    with pytest.raises(CheckpointError, match="step 2 of .* cannot be restored"):
        restore(saved, 2, shape_of=change(make_state(2)))


def test_a_step_that_is_saved_already_is_an_error_and_stays_as_it_was(directory):
    with Checkpoints(directory) as checkpoints, pytest.raises(CheckpointError):
        checkpoints.save(2, make_state(9), {}, None)
    assert bits(restore(directory, 2)[0]) == bits(make_state(2))


def test_reading_only_writes_nothing(directory):
    (directory / "00000003.orbax-checkpoint-tmp-17").mkdir()
    before = sorted((str(path), path.stat().st_mtime_ns) for path in directory.rglob("*"))
    restore(directory, 2)
    after = sorted((str(path), path.stat().st_mtime_ns) for path in directory.rglob("*"))
    assert after == before


def test_a_relative_directory_is_as_good_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert save_all("checkpoints", [0.5]) == [1]
    assert bits(restore("checkpoints", 1)[0]) == bits(make_state(1))
