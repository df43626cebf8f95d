"""The job array of a sweep, run by bash with stand-ins for Slurm's commands."""

import os
import subprocess

import pytest
from sweep_points import command, make_run

from mobilevitv2_jax.errors import ConfigError, UserError
from mobilevitv2_jax.training.sweep import slurm

TOOLS = {
    "srun": 'shift\nexec "$@"',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"',
    "sbatch": 'echo "sbatch $*" >>"$CALLS"\n'
    "[[ -z ${REFUSED:-} ]] || { echo no account >&2; exit 1; }\necho '41;cluster'",
    "squeue": '[[ -z ${QUEUED:-} ]] || echo "$QUEUED"',
}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Puts stand-ins of Slurm's commands on the PATH; returns the file that lists their calls."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in TOOLS.items():
        (place / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def run_task(text, index):
    environment = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "41"}
    return subprocess.run(["bash", "-c", text], env={**os.environ, **environment}, check=False)


def test_the_array_has_a_task_for_every_point_and_so_many_at_a_time(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a", "b", "c")]
    lines = slurm.script(runs, tmp_path, parallel=2, retries=1).splitlines()
    assert "#SBATCH --array=0-2%2" in lines
    assert "#SBATCH --signal=TERM@120" in lines and "#SBATCH --requeue" in lines


def test_names_with_spaces_are_quoted(tmp_path):
    place = tmp_path / "my sweep"
    lines = slurm.script([make_run(place, "a")], place, parallel=1, retries=0).splitlines()
    assert "#SBATCH --job-name='my sweep'" in lines
    assert f"#SBATCH --output='{place}/logs/slurm-%A_%a.log'" in lines


def test_a_task_trains_its_point_into_its_log(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "TRAIN", command("print(*sys.argv[1:])"))
    runs = [make_run(tmp_path, name) for name in ("a", "b=1,c")]
    (tmp_path / "logs").mkdir()
    assert run_task(slurm.script(runs, tmp_path, 1, 0), 1).returncode == 0
    said = (tmp_path / "logs" / "b=1,c.log").read_text()
    assert said == f"--workdir {tmp_path}/runs/b=1,c --distributed=false\n"
    assert not (tmp_path / "logs" / "a.log").exists()


@pytest.mark.parametrize(
    ("statuses", "retries", "status", "tries", "requeued"),
    [
        ((1, 0), 1, 0, 2, False),
        ((1, 1), 1, 1, 2, False),
        ((1,), 0, 1, 1, False),
        ((2,), 3, 2, 1, False),
        ((75,), 3, 75, 1, True),
        ((1, 75), 3, 75, 2, True),
    ],
)
def test_failures_are_tried_again_and_preempted_tasks_are_put_back(
    tools, tmp_path, monkeypatch, statuses, retries, status, tries, requeued
):
    code = f"""
tries = directory / "tries"
number = len(tries.read_text()) if tries.exists() else 0
tries.write_text("x" * (number + 1))
sys.exit({statuses!r}[number])
"""
    monkeypatch.setattr(slurm, "TRAIN", command(code))
    (tmp_path / "logs").mkdir()
    text = slurm.script([make_run(tmp_path, "a")], tmp_path, 1, retries)
    assert run_task(text, 0).returncode == status
    assert len((tmp_path / "runs" / "a" / "tries").read_text()) == tries
    assert tools.exists() == requeued
    if requeued:
        assert tools.read_text() == "scontrol requeue 41_0\n"


def test_the_script_is_submitted_with_the_options_and_not_twice(tools, tmp_path, monkeypatch):
    job = slurm.submit("text", tmp_path, ["--gpus=1", "--time=4:00:00"])
    assert job == "41"
    assert tools.read_text() == (
        f"sbatch --parsable --gpus=1 --time=4:00:00 {tmp_path / 'sweep.sbatch'}\n"
    )
    assert (tmp_path / "sweep.sbatch").read_text() == "text"
    monkeypatch.setenv("QUEUED", "41_1")
    with pytest.raises(ConfigError, match="job 41 of this sweep is still in Slurm's queue"):
        slurm.submit("text", tmp_path, [])
    monkeypatch.delenv("QUEUED")
    assert slurm.submit("text", tmp_path, []) == "41"


def test_what_sbatch_says_against_it_is_told(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSED", "1")
    with pytest.raises(UserError, match="sbatch refused .*sweep.sbatch: no account"):
        slurm.submit("text", tmp_path, [])
    assert not (tmp_path / "slurm_job").exists()


def test_without_slurm_the_script_is_written_for_a_machine_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="there is no sbatch here: submit .*sweep.sbatch"):
        slurm.submit("text", tmp_path, [])
    assert (tmp_path / "sweep.sbatch").read_text() == "text"
