"""Starts several processes of one command on this host, and ends them all when one fails.

    python launch/local.py -n 2 -- python -u train.py --config configs/digits.py

Each gets --coordinator, --num-processes and --process-id; each of its lines begins with its
number. The status is the first that is not 0 (128 + signal for a process that was killed).
SIGTERM and Ctrl-C are passed on: the processes save a checkpoint and end with status 75. A second
Ctrl-C ends them at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

PREEMPTED = 75
GRACE = 30.0  # seconds for the others to end by themselves, too, when one ends with PREEMPTED
POLL = 0.05


def free_port() -> int:
    """Returns a port that nothing listens to."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(command: list[str], count: int) -> list[subprocess.Popen]:
    """Starts the processes, each at the head of a group of its own, so that none is left over."""
    coordinator = f"127.0.0.1:{free_port()}"
    processes = []
    for index in range(count):
        options = [f"--coordinator={coordinator}", f"--num-processes={count}"]
        process = subprocess.Popen(
            [*command, *options, f"--process-id={index}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        processes.append(process)
    return processes


def copy_lines(process: subprocess.Popen, index: int) -> None:
    """Prints what a process says, with its number in front."""
    for line in process.stdout:
        sys.stdout.write(f"[{index}] {line.rstrip()}\n")
        sys.stdout.flush()


def signal_all(processes: list[subprocess.Popen], number: int) -> None:
    """Sends a signal to every process and to what it has started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def wait(processes: list[subprocess.Popen]) -> int:
    """Waits until all have ended well, or one has not; returns the status."""
    deadline = None
    while True:
        statuses = [process.poll() for process in processes]
        failed = [status for status in statuses if status not in (None, 0, PREEMPTED)]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in statuses:
            return max(statuses)
        if PREEMPTED in statuses:
            deadline = deadline or time.monotonic() + GRACE
            if time.monotonic() > deadline:
                return PREEMPTED
        time.sleep(POLL)


def run(command: list[str], count: int) -> int:
    """Runs the processes to their end."""
    processes = start(command, count)

    def pass_on(number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, lambda *_: signal_all(processes, signal.SIGKILL))
        signal_all(processes, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    readers = [
        threading.Thread(target=copy_lines, args=(process, index))
        for index, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    try:
        status = wait(processes)
    finally:
        # SIGKILL, for nothing else ends a process that is stopped.
        signal_all(processes, signal.SIGKILL)
    for reader in readers:
        reader.join()
    for index, process in enumerate(processes):
        if process.wait() != 0:
            sys.stderr.write(f"process {index} ended with status {process.returncode}\n")
    return status


def main() -> int:
    """Reads the arguments and runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=2, metavar="N", help="processes; default 2")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args()
    if options.n < 1:
        parser.error(f"-n must be at least 1, got {options.n}")
    return run(options.command, options.n)


if __name__ == "__main__":
    sys.exit(main())
