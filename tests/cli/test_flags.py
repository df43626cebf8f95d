"""How options are written."""

import pytest

from mobilevitv2_jax.cli import flags
from mobilevitv2_jax.errors import ConfigError


def parsed(*argv):
    values = flags.new()
    flags.define(values, "sbatch", str)
    flags.define(values, "dry_run", bool)
    flags.define(values, "images", list)
    flags.parse(values, argv)
    return flags.given(values)


@pytest.mark.parametrize("dry", ["--dry-run", "--dry_run", "--dry-run=true"])
def test_dashes_are_as_good_as_underscores(dry):
    assert parsed(dry) == {"dry_run": True}
    assert parsed("--nodry-run") == {"dry_run": False}


@pytest.mark.parametrize("argv", [["--sbatch", "{}"], ["--sbatch={}"]])
def test_a_value_that_begins_with_dashes_stays_as_it_is(argv):
    value = "--gpus-per-node=8 --exclusive"
    assert parsed(*(word.format(value) for word in argv)) == {"sbatch": value}


def test_a_list_grows_each_time_that_it_is_given():
    assert parsed("--images", "a", "--images=b", "--images=c") == {"images": ["a", "b", "c"]}


def test_a_no_with_a_value_is_a_mistake():
    with pytest.raises(ConfigError, match="does not take an argument"):
        parsed("--nodry_run=true")
