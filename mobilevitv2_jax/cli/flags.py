"""Command-line options: absl's parser on an instance of its own, with errors people can act on.

Each verb makes its flags with `new`, adds to them with `define`, and reads them with `parse`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from mobilevitv2_jax.config import nearest_key
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.models.config import nearest

CONFIG = "config"
"""The flag that names a config file; `config.` begins the flags that override its keys."""

_KINDS = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "one or more words",
}


class _Flag(flags.Flag):
    """A flag that adds to a list each time it is given."""

    def parse(self, argument: Any) -> None:
        """Takes one more value."""
        before = self.value if self.present and isinstance(argument, str) else None
        super().parse(argument)
        if before and isinstance(self.value, list):
            self.value = [*before, *self.value]


class _Parser(flags.ArgumentParser):
    """Reads a value of the kind that the schema gives to a key."""

    def __init__(self, kind: type, example: Any = None, optional: bool = False):
        self.kind, self.example, self.optional = kind, example, optional

    def parse(self, argument: Any) -> Any:
        if self.kind is list:
            return argument if isinstance(argument, list) else [argument]
        text = str(argument).strip()
        if self.optional and text == "None":
            return None
        try:
            if self.kind is bool:
                return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
            return self._tuple(text) if self.kind is tuple else self.kind(text)
        except (KeyError, SyntaxError, TypeError, ValueError):
            raise ValueError(f"must be {self.flag_type()}") from None

    def _tuple(self, text: str) -> tuple[Any, ...]:
        items = ast.literal_eval(text)
        if not isinstance(items, tuple | list) or len(items) != len(self.example):
            raise ValueError
        kind = type(self.example[0])
        if any(isinstance(item, bool) or not isinstance(item, int | kind) for item in items):
            raise TypeError
        return tuple(kind(item) for item in items)

    def flag_type(self) -> str:
        """Returns the words for what is expected."""
        if self.kind is tuple:
            item = _KINDS[type(self.example[0])].split()[-1]
            return f"{len(self.example)} {item}s in quotes, such as '{self.example}'"
        return _KINDS[self.kind] + (" or None" if self.optional else "")


def new() -> flags.FlagValues:
    """Returns an empty set of flags, which may stand in any order among other arguments."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    return values


def define(
    values: flags.FlagValues,
    name: str,
    kind: type,
    description: str = "",
    *,
    example: Any = None,
    optional: bool = False,
) -> None:
    """Adds one flag, which is None until it is given.

    Args:
        values: the flags of a verb.
        name: the name, with underscores.
        kind: `str`, `int`, `float`, `bool`, `tuple`, or `list`: words, one as an option.
        description: one line for `--help`.
        example: a value; required for a tuple, whose length and item type it gives.
        optional: whether the word None is a value.
    """
    flag = _Flag(
        _Parser(kind, example, optional), None, name, None, description, boolean=kind is bool
    )
    flags.DEFINE_flag(flag, values)


def given(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the flags that stand on the command line, by name."""
    return {name: values[name].value for name in values if values[name].present}


def parse(values: flags.FlagValues, argv: Sequence[str], positional: Sequence[str] = ()) -> None:
    """Reads a verb's arguments into its flags.

    Args:
        values: the flags that exist.
        argv: the arguments, without program and verb.
        positional: flags whose values may also stand alone, in this order; one that is a list
            takes all that are left.

    Raises:
        ConfigError: for an unknown flag, naming the nearest; a value of the wrong type; a
            missing value; or an argument that is no flag.
    """
    try:
        rest = values(["", *_with_underscores(argv, values)])[1:]
        for name in positional:
            several = values[name].flag_type() == _KINDS[list]
            if rest and several:  # also behind the option, which has taken the first word
                values[name].parse([*(values[name].value or []), *rest])
                rest = []
            elif rest and not values[name].present:
                values[name].parse(rest[0])
                rest = rest[1:]
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown(error.flagname, values)) from None
    except (flags.Error, ValueError) as error:  # a ValueError for --noname=value
        raise ConfigError(str(error)) from None
    if rest:
        raise ConfigError(
            f"unexpected argument {rest[0]!r}: options are written --name=value "
            "(put quotes around a value with spaces)"
        )
    # Libraries define flags of their own on absl's global instance (grain does) and read them
    # later, which fails until it has been parsed. Theirs keep their defaults.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _with_underscores(argv: Iterable[str], values: flags.FlagValues) -> list[str]:
    """Writes `--dry-run` as `--dry_run`; keys, and values that begin so, stay as they are."""
    out = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        known = name[2:].replace("-", "_")
        if name.startswith("--") and (known in values or known.removeprefix("no") in values):
            name = "--" + known
        out.append(name + equals + value)
    return out


def _unknown(name: str, values: flags.FlagValues) -> str:
    prefix = CONFIG + "."
    keys = [flag.removeprefix(prefix) for flag in values if flag.startswith(prefix)]
    if keys and name.removeprefix("no").startswith(prefix):
        key = name.removeprefix("no").removeprefix(prefix)
        inner = [other for other in keys if other.startswith(key + ".")]
        if inner:
            return f"--{name} is a group of keys; set one of them: {', '.join(inner)}"
        return (
            f"the config has no key {key!r}{nearest_key(key, keys)}; --help lists all of them, "
            "and they are set as --config.group.key=value"
        )
    shown = [flag.replace("_", "-") for flag in values if not flag.startswith(prefix)]
    own = name.replace("_", "-")
    hint = nearest(own, shown) or nearest_key(name, [prefix + key for key in keys])
    return f"unknown option --{own}{hint}; --help lists the options"
