"""A trace of some steps, for a profiler to show."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from etils import epath

from mobilevitv2_jax.files import is_local


class ProfilerWindow:
    """Traces steps `profile.start` to `profile.start + profile.steps - 1` of a run, counted from 1.

    The trace lies in `profile/` of the run directory: `*.xplane.pb` for XProf, and
    `perfetto_trace.json.gz` for https://ui.perfetto.dev. A run that is continued inside the window
    traces what is left of it, one that is continued behind it nothing.

    Args:
        config: a validated experiment.
        directory: the run directory.
        say: tells the user.
        active: False on all processes but the first, whose trace speaks for the others.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        directory: epath.PathLike,
        say: Callable[[str], None],
        active: bool,
    ) -> None:
        first = config.profile.start if active else 0
        self._window = range(first, first + config.profile.steps) if first else range(0)
        self._directory = epath.Path(directory) / "profile"
        self._temporary: pathlib.Path | None = None
        self._say = say
        self._first: int | None = None  # while it traces, the step it began with

    def turn(self, step: int | None, state: Any) -> None:
        """Begins or ends the trace, if it is time.

        Args:
            step: the step that comes next, or None where none does.
            state: what the last step returned; waited for, so that the trace holds whole steps.
        """
        inside = step in self._window
        if inside == (self._first is not None):
            return
        jax.block_until_ready(state)
        if inside:
            if not is_local(self._directory):  # the profiler writes to a disk only
                self._temporary = pathlib.Path(tempfile.mkdtemp(prefix="mobilevitv2-"))
            place = str(self._temporary or self._directory)
            jax.profiler.start_trace(place, create_perfetto_trace=True)
            self._first = step
        else:
            self.close()

    def close(self) -> None:
        """Ends the trace, if there is one."""
        if self._first is not None:
            jax.profiler.stop_trace()
            if self._temporary:
                for path in filter(pathlib.Path.is_file, self._temporary.rglob("*")):
                    target = self._directory / path.relative_to(self._temporary)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
                shutil.rmtree(self._temporary)
            self._say(f"traced from step {self._first} on: {self._directory}")
            self._first = None
