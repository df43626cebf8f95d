"""The words of a command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def without(words: Sequence[str], options: Iterable[str]) -> list[str]:
    """Returns the words without these options and their values.

    Args:
        words: the arguments of a command.
        options: such as "--workdir"; in `words`, underscores are as good as dashes.
    """
    dropped = {option.replace("-", "_") for option in options}
    rest = iter(words)
    kept = []
    for word in rest:
        name, equals, _ = word.partition("=")
        if name.replace("-", "_") not in dropped:
            kept.append(word)
        elif not equals:
            next(rest, None)  # its value stands apart
    return kept
