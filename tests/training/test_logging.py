"""The clock, the console line, and the files of metrics."""

import json
import math
import struct
import types

import pytest
from etils import epath
from object_store import ObjectStore
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from mobilevitv2_jax.training import logging

SCALE = logging.Scale(
    steps=1000, steps_per_epoch=100, batch_size=64, tflop_per_image=0.5, peak_tflops=None
)


class Time:
    """A clock that a test moves on by hand."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        fake = types.SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(logging, "time", fake)

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


def open_logger(directory, step=0, **options):
    options = {"tensorboard": False, "active": True, **options}
    return logging.Logger(directory, step=step, **options)


def test_the_clock_leaves_out_what_happens_while_it_is_paused(time):
    clock = logging.Clock()
    time.passes(2)
    with clock.paused():
        time.passes(1000)
    time.passes(4)
    for _ in range(3):
        clock.tick()
    assert clock.interval() == (2.0, 0.0)  # six seconds for three steps
    assert clock.to_dict() == {"seconds": 6.0, "waiting": 0.0, "steps": 3}


def test_the_clock_is_paused_also_by_a_block_that_fails(time):
    clock = logging.Clock()
    with pytest.raises(KeyError), clock.paused():
        time.passes(1000)
        raise KeyError
    time.passes(1)
    clock.tick()
    assert clock.interval() == (1.0, 0.0)


def test_waiting_for_data_is_a_share_of_the_interval_and_not_of_the_run(time):
    clock = logging.Clock()
    with clock.waiting_for_data():
        time.passes(3)
    time.passes(1)
    clock.tick()
    assert clock.interval() == (4.0, 0.75)
    time.passes(5)
    clock.tick()
    assert clock.interval() == (5.0, 0.0)


def test_a_restored_clock_goes_on_and_its_first_interval_begins_anew(time):
    saved = {"seconds": 50.0, "waiting": 10.0, "steps": 20}
    clock = logging.Clock(**saved)
    time.passes(2)
    clock.tick()
    assert clock.interval() == (2.0, 0.0)
    assert clock.to_dict() == {"seconds": 52.0, "waiting": 10.0, "steps": 21}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0:00"), (0, "0:00"), (59.6, "1:00"), (127, "2:07"), (3909, "1:05:09")],
)
def test_durations_are_written_as_on_a_clock(seconds, text):
    assert logging.format_seconds(seconds) == text


def test_rates_follow_from_the_time_of_a_step():
    values = logging.rates(SCALE, seconds_per_step=0.5, data_wait=0.25)
    assert values == {
        "train/images_per_second": 128.0,
        "train/data_wait": 0.25,
        "train/tflops": 64.0,
    }


def test_the_console_line_tells_all_that_is_promised():
    metrics = {"train/loss": 1.23456, "train/learning_rate": 0.00123, "train/gradient_norm": 3.456}
    metrics |= logging.rates(SCALE, seconds_per_step=0.5, data_wait=0.034)
    line = logging.console_line(250, metrics, SCALE, seconds_per_step=0.5)
    assert line == (
        "step  250/1000  epoch 2.5  loss 1.2346  lr 1.23e-03  grad 3.46  128 img/s  data 3.4%  "
        "64 TFLOP/s  ETA 6:15"
    )


def test_utilisation_is_told_where_the_peak_is_known():
    scale = logging.Scale(1000, 100, 64, 0.5, peak_tflops=256.0)
    metrics = {"train/loss": 1.0, "train/learning_rate": 0.1, "train/gradient_norm": 1.0}
    metrics |= logging.rates(scale, seconds_per_step=0.5, data_wait=0.0)
    assert metrics["train/utilisation"] == 0.25
    assert "util 25.0%" in logging.console_line(250, metrics, scale, 0.5)


def test_metrics_are_one_json_object_a_line(tmp_path):
    logger = open_logger(tmp_path)
    logger.write(1, {"train/loss": 2.5})
    logger.write(2, {"eval/top1": 0.5, "eval/loss": 1.5})
    logger.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "train/loss": 2.5},
        {"step": 2, "eval/top1": 0.5, "eval/loss": 1.5},
    ]


def test_a_line_can_be_read_while_the_run_goes_on(tmp_path):
    logger = open_logger(tmp_path)
    logger.write(1, {"train/loss": 2.5})
    assert logging.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 2.5}]
    logger.close()


def test_resuming_cuts_off_what_came_after_the_restored_step(tmp_path):
    logger = open_logger(tmp_path)
    for step in range(1, 6):
        logger.write(step, {"train/loss": float(step)})
    logger.close()
    logger = open_logger(tmp_path, step=3)
    logger.write(4, {"train/loss": 40.0})
    logger.close()
    found = logging.read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["train/loss"]) for line in found] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_starting_anew_leaves_no_line_of_an_earlier_attempt(tmp_path):
    logger = open_logger(tmp_path)
    logger.write(1, {"train/loss": 1.0})
    logger.close()
    open_logger(tmp_path, step=0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_last_line_that_was_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/lo')
    assert logging.read_metrics(path) == [{"step": 1, "train/loss": 2.0}]
    logger = open_logger(tmp_path, step=2)
    logger.write(3, {"train/loss": 1.0})
    logger.close()
    assert [line["step"] for line in logging.read_metrics(path)] == [1, 3]


def test_values_that_json_lacks_are_written_as_text(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    logger = open_logger(tmp_path)
    logger.write(1, {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    logger.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {
        "step": 1,
        "a": "nan",
        "b": "inf",
        "c": "-inf",
    }
    # Resuming after it must not stumble over the text.
    open_logger(tmp_path, step=1, tensorboard=True).close()
    assert (tmp_path / "metrics.jsonl").read_text() == line


def test_a_logger_that_is_not_active_writes_and_says_nothing(tmp_path, capsys):
    logger = open_logger(tmp_path, active=False, tensorboard=True)
    logger.say("something")
    logger.write(1, {"train/loss": 1.0})
    logger.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_an_active_logger_says_a_line(tmp_path, capsys):
    logger = open_logger(tmp_path)
    logger.say("something")
    logger.close()
    assert capsys.readouterr().out == "something\n"


def test_a_list_is_written_to_the_file_of_metrics_alone(tmp_path):
    logger = open_logger(tmp_path, tensorboard=True)
    logger.write(3, {"train/skipped_in_a_row": 1, "train/skipped_examples": [5, 7]})
    logger.close()
    (line,) = logging.read_metrics(tmp_path / "metrics.jsonl")
    assert line == {"step": 3, "train/skipped_in_a_row": 1, "train/skipped_examples": [5, 7]}
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert read_events(path) == [(3, "train/skipped_in_a_row", 1.0)]


def test_on_an_object_store_files_are_published_whole_and_gone_on_with(object_store):
    directory = epath.Path(ObjectStore.ROOT) / "run"
    logger = open_logger(directory, tensorboard=True)
    for step in range(1, 5):
        logger.write(step, {"train/loss": float(step)})
        if step == 2:
            logger.publish()
            assert [x["step"] for x in logging.read_metrics(directory / "metrics.jsonl")] == [1, 2]
    logger.close()
    logger = open_logger(directory, step=3, tensorboard=True)
    logger.write(4, {"train/loss": 40.0})
    logger.close()
    losses = [line["train/loss"] for line in logging.read_metrics(directory / "metrics.jsonl")]
    assert losses == [1.0, 2.0, 3.0, 40.0]
    events = sorted(directory.glob("events.out.tfevents.*"))
    assert sum(len(read_events(path)) for path in events) == 5
    assert {name.partition(".")[0] for name in ObjectStore.names()} == {"run/metrics", "run/events"}


def read_events(path):
    """Returns (step, name, value) of a TensorBoard file, whose checksums are compared."""
    found = []
    for content in records(path):
        event = event_pb2.Event.FromString(content)
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def records(path):
    """Returns the contents of a TFRecord file: each between its length and a checksum."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        content, rest = data[12 : 12 + length], data[16 + length :]
        # Against the implementation of another project, in pure Python.
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(content)
        found.append(content)
        data = rest
    return found


def test_tensorboard_gets_the_same_values(tmp_path):
    logger = open_logger(tmp_path, tensorboard=True)
    logger.write(3, {"train/loss": 2.5})
    logger.write(300_000, {"eval/top1": 0.5, "eval/loss": float("nan")})
    logger.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert read_events(path)[:2] == [(3, "train/loss", 2.5), (300_000, "eval/top1", 0.5)]
    assert math.isnan(read_events(path)[2][2])
    version, *events = (event_pb2.Event.FromString(content) for content in records(path))
    assert version.file_version == "brain.Event:2"
    assert all(abs(event.wall_time - version.wall_time) < 3600 for event in events)


def test_tensorboard_hides_what_an_interrupted_run_has_written_after_the_restored_step(tmp_path):
    open_logger(tmp_path, step=7, tensorboard=True).close()
    (path,) = tmp_path.glob("events.out.tfevents.*.7")
    event = event_pb2.Event.FromString(records(path)[1])
    assert (event.step, event.session_log.status) == (8, event_pb2.SessionLog.START)
