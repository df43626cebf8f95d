"""Checkpoints: what is kept, what comes back, and what is refused."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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


def test_a_directory_of_something_else_is_refused_by_name(tmp_path):
    (tmp_path / "step_100.ckpt").write_text("")
    with pytest.raises(CheckpointError, match=r"step_100\.ckpt but no checkpoint of this format"):
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


def test_a_step_that_is_not_there_is_refused_with_those_that_are(saved):
    with pytest.raises(CheckpointError, match=r"no step 7; it has \[1, 2\]"):
        restore(saved, 7)


def test_a_truncated_payload_is_refused_with_the_step(directory):
    payload = [path for path in (directory / "00000002" / "state").rglob("d/*") if path.is_file()]
    assert payload
    for path in payload:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="step 2 of .* cannot be restored"):
        restore(directory, 2)
    assert bits(restore(directory, 1)[0]) == bits(make_state(1))


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
