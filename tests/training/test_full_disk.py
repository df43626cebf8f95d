"""A disk that is really full: a small file system in memory, in a namespace of its own."""

import pathlib
import shlex
import subprocess
import sys

import pytest
from states import bytes_of, saved_state
from tiny import tiny_digits, tiny_flags, use_small_model

from mobilevitv2_jax.training import loop
from mobilevitv2_jax.training.logging import read_metrics

REPOSITORY = pathlib.Path(__file__).parents[2]
CHANGES = {
    "model.ffn_dropout": 0.2,
    "schedule.total": "20 steps",
    "eval.every": "20 steps",
    "checkpoint.every": "2 steps",
    "checkpoint.keep_latest": 20,  # nothing makes room
}

# A checkpoint of the small model takes about 90 KiB. Room is made after the first run; what is in
# the file system is gone when this shell ends.
SCRIPT = """
mount -t tmpfs -o size=500k none "$1" || exit 99
{command} --workdir "$1/run" >"$2/first" 2>&1
echo $? >"$2/status"
mount -o remount,size=100m "$1"
{command} --workdir "$1/run" >"$2/second" 2>&1 && cp -r "$1/run" "$2/run"
"""


def can_mount():
    shell = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(shell, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this user may not mount a file system of its own")
def test_a_full_disk_ends_a_run_in_a_line_and_it_goes_on_when_there_is_room(tmp_path, monkeypatch):
    words = [sys.executable, "tests/small_cli.py", "train", *tiny_flags(CHANGES)]
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    script = SCRIPT.format(command=shlex.join(words))
    shell = ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path / "disk", tmp_path / "out"]
    done = subprocess.run(shell, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    first, second = ((tmp_path / "out" / name).read_text() for name in ("first", "second"))
    assert (tmp_path / "out" / "status").read_text() == "1\n", first
    error = first.splitlines()[-1]
    assert error.startswith("error: ") and error.endswith("run the same command again")
    assert "Traceback" not in first
    assert "No space left" in error or "free space" in error or "RESOURCE_EXHAUSTED" in error

    assert "continuing" in second, second
    use_small_model(monkeypatch)
    assert loop.train(tiny_digits(CHANGES), tmp_path / "straight", "") == 0
    runs = (tmp_path / "straight", tmp_path / "out" / "run")
    expected, found = (bytes_of(saved_state(run, 20)) for run in runs)
    assert [path for path in expected if expected[path] != found[path]] == []
    lines = [[line["step"] for line in read_metrics(run / "metrics.jsonl")] for run in runs]
    assert lines[0] == lines[1]
