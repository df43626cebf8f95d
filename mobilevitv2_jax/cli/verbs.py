"""Finds the verb that a command line begins with."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

from mobilevitv2_jax.cli import help
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.models.config import nearest


def dispatch(program: str, verbs: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Runs a verb, or prints which there are, and returns the exit status.

    Args:
        program: the words before the verb.
        verbs: by name, the module whose `run(argv)` does it, imported when it is used, and a
            line that tells what it does.
        argv: the verb and its arguments.

    Raises:
        ConfigError: for an unknown verb.
    """
    if not argv or help.wanted(argv[:1]):
        lines = "".join(f"  {verb:<10}{line}\n" for verb, (_, line) in verbs.items())
        sys.stdout.write(
            f"{program} VERB [options]\n\n{lines}\n{program} VERB --help tells more.\n"
        )
        return 0
    verb, *arguments = argv
    if verb not in verbs:
        raise ConfigError(
            f"unknown verb {verb!r}{nearest(verb, verbs)}; there are {', '.join(verbs)}"
        )
    return importlib.import_module(verbs[verb][0]).run(arguments)
