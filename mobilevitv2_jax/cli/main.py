"""`mobilevitv2 VERB …`: finds the verb, and turns its outcome into an exit status."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import traceback

from mobilevitv2_jax.cli import processes
from mobilevitv2_jax.cli.allocator import keep_freed_memory
from mobilevitv2_jax.cli.verbs import dispatch
from mobilevitv2_jax.errors import UserError
from mobilevitv2_jax.files import cache_directory

VERBS = {
    "train": ("mobilevitv2_jax.cli.train", "train a model, or continue a run"),
    "eval": ("mobilevitv2_jax.cli.evaluate", "evaluate a checkpoint of a run"),
    "predict": ("mobilevitv2_jax.cli.predict", "tell what is in pictures"),
    "convert": ("mobilevitv2_jax.cli.convert", "write weights in another project's form"),
    "export": ("mobilevitv2_jax.cli.export", "write a model for servers and phones"),
    "bench": ("mobilevitv2_jax.cli.bench", "compare exported files: accuracy and latency"),
    "sweep": ("mobilevitv2_jax.cli.sweep", "train many variants of a config, and compare them"),
    "inspect": ("mobilevitv2_jax.cli.inspect", "tell what a config leads to, without training"),
    "prepare": ("mobilevitv2_jax.cli.prepare", "make a data set of archives or folders of images"),
    "compile": ("mobilevitv2_jax.cli.compile", "compile for a TPU pod, without the pod"),
}
"""What each verb does, and the module whose `run(argv)` does it: imported when it is used."""


def main(argv: list[str] | None = None) -> None:
    """Runs a verb and exits: one paragraph for what the user can mend, 130 for Ctrl-C.

    What ends one of several processes ends it at once, so that the others end, too; what nobody
    has foreseen gives status 70 there.

    Args:
        argv: the verb and its arguments; those of the process by default.
    """
    keep_freed_memory()
    # A program is compiled once on a machine, not once in every process; JAX reads these variables.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_directory() / "xla"))
    # Kept however quickly it was compiled: a run has a hundred small ones, which take 3 s.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Through these orbax warns of what its users asked for, and prints each error that it raises,
    # again and again; what matters here is said once, at the end.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _tell_of_main_thread
    try:
        status = dispatch("mobilevitv2", VERBS, sys.argv[1:] if argv is None else argv)
        processes.finish()
    except BaseException as error:
        status = _explain(error)
    if processes.started():
        processes.end(status)
    sys.exit(status)


def _tell_of_main_thread(unraisable: sys.UnraisableHookArgs) -> None:
    """Leaves out what fails in other threads where nothing can be raised.

    When the write of one array of a checkpoint fails, tensorstore's threads complain for each of
    the others that nobody waits any more; the failure itself is told once, at the end.
    """
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def _explain(error: BaseException) -> int:
    """Says in a paragraph what the user can mend, and returns the exit status."""
    if isinstance(error, UserError):
        lines = (line.strip() for line in str(error).splitlines())
        sys.stderr.write(f"error: {' '.join(filter(None, lines))}\n")
        return error.status
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        sys.stderr.write(f"error: {error}: free some space, and run the same command again\n")
        return 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    if not processes.started():
        raise error
    traceback.print_exc()
    return 70


if __name__ == "__main__":
    main()
