"""The pictures that words of a command line name."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.images import SUFFIXES


def expand(words: Sequence[str]) -> list[str]:
    """Returns the files that words name: files, all pictures of folders, and patterns.

    Raises:
        ConfigError: if a word names none.
    """
    paths = []
    for word in words:
        if os.path.isdir(word):
            inside = sorted(os.path.join(word, name) for name in os.listdir(word))
            found = [path for path in inside if path.lower().endswith(SUFFIXES)]
            if not found:
                raise ConfigError(f"{word} holds no picture ({', '.join(SUFFIXES)})")
        elif os.path.exists(word) or not glob.has_magic(word):
            found = [word]
        else:
            found = sorted(filter(os.path.isfile, glob.glob(word, recursive=True)))
            if not found:
                raise ConfigError(f"nothing is named like {word}")
        paths += found
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise ConfigError(f"{missing[0]} does not exist")
    return paths
