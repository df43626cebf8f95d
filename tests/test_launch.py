"""The scripts of launch/ that can run here: on one host, and Slurm's with stand-ins for Slurm."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml
from tiny import tiny_flags

from mobilevitv2_jax.cli import flags
from mobilevitv2_jax.cli.experiment import define_config
from mobilevitv2_jax.training.faults import EXIT_STATUS

REPOSITORY = pathlib.Path(__file__).parents[1]
LOCAL = [sys.executable, "launch/local.py"]


def local(count, code, *arguments):
    """Starts processes that run a piece of Python; what the launcher adds is in `sys.argv`."""
    return subprocess.Popen(
        [*LOCAL, f"-n{count}", "--", sys.executable, "-uc", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


# Which process this is.
INDEX = "import os, signal, sys, time; i = int(sys.argv[-1].partition('=')[2])\n"


def is_alive(pid):
    """Returns whether a process exists and is not a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_process_is_told_which_it_is_and_its_lines_bear_its_number():
    status, said = finish(local(3, "import sys; print(*sys.argv[1:])", "--option"))
    assert status == 0
    lines = sorted(said.splitlines())
    for index, line in enumerate(lines):
        assert line.startswith(f"[{index}] --option --coordinator=127.0.0.1:")
        assert line.endswith(f"--num-processes=3 --process-id={index}")
    assert len({line.split()[2] for line in lines}) == 1


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)],
)
def test_the_first_that_fails_ends_all_with_its_status(tmp_path, end, status):
    # Process 0 is stopped and has a child; it says so before process 1 fails.
    code = f"""{INDEX}
import pathlib, subprocess
told = pathlib.Path(sys.argv[1])
if i == 0:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    told.with_suffix(".tmp").write_text(f"{{os.getpid()}} {{child.pid}}")
    told.with_suffix(".tmp").replace(told)
    os.kill(os.getpid(), signal.SIGSTOP)
while not told.exists():
    time.sleep(0.01)
{end}
"""
    told = tmp_path / "pids"
    found, said = finish(local(2, code, told))
    assert found == status, said
    assert f"process 1 ended with status {status if status < 128 else -9}" in said
    assert [pid for pid in told.read_text().split() if is_alive(pid)] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_is_passed_on_and_all_may_end_by_themselves(number):
    code = f"""{INDEX}
def stop(*_):
    time.sleep(0.2 * i)
    print("saved", flush=True)
    sys.exit(75)
signal.signal({int(number)}, stop)
print("ready", flush=True)
time.sleep(600)
"""
    process = local(2, code)
    for _ in range(2):
        assert "ready" in process.stdout.readline()
    process.send_signal(number)
    status, said = finish(process)
    assert status == 75 and said.count("saved") == 2


def test_a_number_of_processes_that_makes_no_sense_is_refused():
    status, said = finish(local(0, ""))
    assert status == 2 and "-n must be at least 1, got 0" in said


# ---- TPU VM and GKE -----------------------------------------------------------------------

GCLOUD = """#!/usr/bin/env bash
# Notes its arguments, and runs the command.
printf '%s\\n' "$@" >>"$STUBS/asked"
cd "$STUBS" && bash -c "${@: -1}"
"""
PYTHON3 = """#!/usr/bin/env bash
printf '<%s>' "$@" >>"$STUBS/ran"
status=$(head -1 "$STUBS/statuses")
sed -i 1d "$STUBS/statuses"
exit "$status"
"""


def stub(directory, **programs):
    """Puts programs into a directory, and returns an environment in which they are found."""
    for name, text in programs.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "STUBS": str(directory)}


@pytest.mark.parametrize(("statuses", "status"), [("75 75 0", 0), ("75 3", 3), ("130", 130)])
def test_a_tpu_vm_runs_the_command_on_all_its_hosts_until_it_is_not_preempted(
    tmp_path, statuses, status
):
    environment = stub(tmp_path, gcloud=GCLOUD, python3=PYTHON3, sleep="#!/usr/bin/env bash\n")
    environment |= {"NAME": "my-tpu", "ZONE": "us-east5-b", "DIRECTORY": "."}
    (tmp_path / "statuses").write_text(statuses.replace(" ", "\n") + "\n")
    options = ["--config.schedule.total=20 steps", "--workdir", "gs://bucket/a $b"]
    done = subprocess.run(["launch/tpu_vm.sh", *options], cwd=REPOSITORY, env=environment)
    assert done.returncode == status
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(
        "compute\ntpus\ntpu-vm\nssh\nmy-tpu\n--zone\nus-east5-b\n--worker=all\n"
    )
    once = "".join(f"<{word}>" for word in ("-u", "train.py", "--distributed", *options))
    assert (tmp_path / "ran").read_text() == once * len(statuses.split())


def test_the_manifest_for_gke_requeues_what_ends_with_the_status_of_a_preemption():
    manifest = yaml.safe_load((REPOSITORY / "launch" / "gke_jobset.yaml").read_text())
    (jobs,) = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    on_status, on_eviction = job["podFailurePolicy"]["rules"]
    preempted = EXIT_STATUS[signal.SIGTERM]
    assert on_status["onExitCodes"] == {"operator": "In", "values": [preempted]}
    assert on_eviction["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert on_status["action"] == on_eviction["action"] == "FailJob"
    # A pod failure policy asks for it; and all hosts start again, or none.
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert manifest["spec"]["failurePolicy"]["rules"] == [
        {
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],  # the reason of FailJob
        }
    ]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-u", "train.py", "--distributed"]
    values = flags.new()
    define_config(values)
    flags.define(values, "workdir", str, "")
    flags.parse(values, container["args"])
    assert (REPOSITORY / values.config).is_file() and values.workdir.startswith("gs://")


# ---- Slurm --------------------------------------------------------------------------------

SRUN = """#!/usr/bin/env bash
# Starts the tasks of a step, as srun does; its status is the highest of theirs.
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_NODES=1
pids=()
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=0 "$@" & pids+=($!)
done
echo "${pids[@]}" >"$STUBS/pids"
highest=0
for pid in "${pids[@]}"; do
  status=0; wait "$pid" || status=$?
  [[ $status -gt $highest ]] && highest=$status
done
exit $highest
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >>"$STUBS/requeued"\n'
# train.py with the small model.
PYTHON = f'#!/usr/bin/env bash\nexec {sys.executable} -u tests/small_cli.py train "${{@:3}}"\n'


def free_job():
    """Returns the number of a job from which JAX makes a port that is free."""
    for job in range(os.getpid() % 4096, 2 * 4096):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", job % 4096 + 61440))
            except OSError:
                continue
            return job
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_slurm_trains_and_a_preempted_job_is_requeued_and_goes_on(tmp_path):
    job = str(free_job())
    environment = stub(tmp_path, srun=SRUN, scontrol=SCONTROL, python=PYTHON)
    environment |= {"SLURM_JOB_ID": job, "SLURM_NTASKS": "2"}  # those of the allocation
    values = {"mesh.devices": 0, "schedule.total": "300 steps"}
    values |= {"eval.every": "300 steps", "checkpoint.every": "300 steps", "log.every": "10 steps"}
    # The values of a run must survive the shell: some have spaces and brackets.
    words = ["launch/slurm.sh", "--workdir", str(tmp_path / "run"), *tiny_flags(values)]

    def submit():
        return subprocess.Popen(
            words,
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = submit()
    said = []
    for line in process.stdout:
        said.append(line)
        if "step  20/300" in line:
            break
    else:
        raise AssertionError("".join(said))
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGTERM)  # Slurm signals the tasks, and not the script
    asked = time.monotonic()
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 75, rest
    assert time.monotonic() - asked <= 30  # promised: 10 s
    assert (tmp_path / "requeued").read_text() == f"requeue {job}\n"

    process = submit()
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0, rest
    assert "process 1 of 2" in rest and "continuing" in rest and "step 300/300" in rest
