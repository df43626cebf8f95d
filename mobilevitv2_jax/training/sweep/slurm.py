"""Hands the points of a sweep to Slurm: one array job, one task per point, plain sbatch."""

from __future__ import annotations

import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from mobilevitv2_jax.errors import ConfigError, UserError
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.training.sweep.points import TRAIN, Run

SCRIPT = "sweep.sbatch"
"""The file, in the directory of a sweep, that is submitted."""

_TEMPLATE = """\
#!/usr/bin/env bash
#SBATCH --job-name={title}
#SBATCH --array=0-{last}%{parallel}
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={output}
# A checkpoint is saved well within the two minutes before the time limit.
#SBATCH --signal=TERM@120
set -uo pipefail

cd {here}
case $SLURM_ARRAY_TASK_ID in
{cases}
esac

for ((attempt = 0; attempt <= {retries}; attempt++)); do
  # One task on one host: --distributed=false, whatever the step's environment looks like.
  srun --ntasks=1 "${{words[@]}}" --distributed=false >>"$log" 2>&1
  status=$?
  if [[ $status -eq 75 ]]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
    exit $status
  fi
  # 2 is the status of a mistake: trying again changes nothing.
  [[ $status -eq 0 || $status -eq 2 ]] && exit $status
done
exit $status
"""


def script(runs: Sequence[Run], directory: pathlib.Path, parallel: int, retries: int) -> str:
    """Returns the text of a job array in which each run is one task.

    Args:
        runs: the points that are to be trained.
        directory: of the sweep.
        parallel: how many tasks Slurm may run at a time.
        retries: how often a task tries again after a failure.
    """
    logs = directory / "logs"
    cases = [
        f"  {index})\n"
        f"    log={shlex.quote(str(logs / f'{run.name}.log'))}\n"
        f"    words=({shlex.join([*TRAIN, *run.options])}) ;;"
        for index, run in enumerate(runs)
    ]
    return _TEMPLATE.format(
        title=shlex.quote(directory.name),
        last=len(runs) - 1,
        parallel=parallel,
        output=shlex.quote(f"{logs}/slurm-%A_%a.log"),
        here=shlex.quote(str(pathlib.Path.cwd())),
        cases="\n".join(cases),
        retries=retries,
    )


def submit(text: str, directory: pathlib.Path, options: Sequence[str]) -> str:
    """Writes the script into the sweep's directory, submits it, and returns the job's number.

    Raises:
        ConfigError: if sbatch is missing, or the job that was submitted last is still there.
        UserError: if sbatch refuses.
    """
    path, number = directory / SCRIPT, directory / "slurm_job"
    if number.exists() and _is_queued(job := number.read_text().strip()):
        raise ConfigError(
            f"job {job} of this sweep is still in Slurm's queue, and would train the same points: "
            f"wait for it, or `scancel {job}` first"
        )
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    if not shutil.which("sbatch"):
        raise ConfigError(f"there is no sbatch here: submit {path} on a machine that has it")
    done = _run(["sbatch", "--parsable", *options, str(path)])
    if done.returncode:
        raise UserError(f"sbatch refused {path}: {done.stderr.strip()}")
    job = done.stdout.strip().partition(";")[0]  # on some systems ";cluster" follows
    write_whole(number, job + "\n")
    return job


def _is_queued(job: str) -> bool:
    if not shutil.which("squeue"):
        return False
    done = _run(["squeue", "--noheader", f"--jobs={job}", "--format=%i"])
    return done.returncode == 0 and bool(done.stdout.strip())  # an old job's number is an error


def _run(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, check=False)
