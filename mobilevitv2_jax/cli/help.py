"""What `--help` prints: a verb's usage, its options, and every key of a config."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Sequence

from absl import flags as absl_flags

from mobilevitv2_jax import config
from mobilevitv2_jax.cli import flags
from mobilevitv2_jax.models.config import MobileViTV2Config

_WIDTH = 100


def wanted(argv: Sequence[str]) -> bool:
    """Returns whether the arguments ask for help."""
    return not {"-h", "-help", "--help"}.isdisjoint(argv)


def parse(
    usage: str,
    values: absl_flags.FlagValues,
    argv: Sequence[str],
    positional: Sequence[str] = (),
) -> bool:
    """Reads a verb's arguments into its flags, or prints its help where they ask for that.

    Args:
        usage: what the verb does, how it is called, and examples.
        values: its flags.
        argv: the arguments, without program and verb.
        positional: flags whose values may also stand alone, in this order.

    Returns:
        Whether the verb is to go on.

    Raises:
        ConfigError: for arguments that cannot be read.
    """
    if wanted(argv):
        sys.stdout.write(render(usage, values))
        return False
    flags.parse(values, argv, positional)
    return True


def render(usage: str, values: absl_flags.FlagValues) -> str:
    """Returns the help of a verb.

    Args:
        usage: what the verb does, how it is called, and examples.
        values: its flags.
    """
    prefix = flags.CONFIG + "."
    options = {
        "--" + name.replace("_", "-"): values[name].help
        for name in values
        if not name.startswith(prefix)
    }
    sections = [usage.strip(), "Options:", _table(options, 16)]
    if any(name.startswith(prefix) for name in values):
        sections += [
            "Keys of a config, with the schema's defaults (a config file sets others, and "
            "--dry-run\nprints what results). Set them as --config.group.key=value:",
            _keys(),
        ]
    return "\n\n".join(sections) + "\n"


def _keys() -> str:
    schema = config.default_config()
    comments = {**_schema_comments(), **_model_comments()}
    prefixes = {
        f"{key} = {value!r}": comments.get(key, "") for key, value in _defaults(schema).items()
    }
    return _table(prefixes, 48)


def _defaults(schema: config.ml_collections.ConfigDict) -> dict[str, object]:
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config.flatten(schema).items()
    }


def _schema_comments() -> dict[str, str]:
    """Returns the comment that stands behind each key where the schema gives its default."""
    source = inspect.getsource(config.default_config)
    return dict(re.findall(r"^    c\.([\w.]+) = .*?  # (.*)$", source, re.MULTILINE))


def _model_comments() -> dict[str, str]:
    """Returns the first sentence on each field in the docstring of the model's config."""
    text = inspect.getdoc(MobileViTV2Config) or ""
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {
        f"model.{name}": re.split(r"\.\s", " ".join(entry.split()))[0].rstrip(".")
        for name, entry in entries
    }


def _table(rows: dict[str, str], column: int) -> str:
    """Returns lines of two columns; a long left side has its right side on the next line."""
    lines = []
    for left, right in rows.items():
        indent = " " * (column + 2)
        first = f"  {left}".ljust(column) + "  "
        if len(first) > len(indent) and right:
            lines.append(first.rstrip())
            first = indent
        wrapped = textwrap.wrap(right, _WIDTH, initial_indent=first, subsequent_indent=indent)
        lines += wrapped or [first.rstrip()]
    return "\n".join(lines)
