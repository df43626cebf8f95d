"""Being told to stop: a signal becomes a request that the loop answers with a checkpoint."""

from __future__ import annotations

import signal
import sys
from types import FrameType

EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75}
"""Status of a run that was stopped and can be continued: 75 asks a scheduler to requeue it."""


class StopRequest:
    """While entered, SIGINT (Ctrl-C) and SIGTERM are noted in `signal` instead of ending the run.

    A second Ctrl-C ends it at once.
    """

    signal: signal.Signals | None = None

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._note) for number in EXIT_STATUS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        sys.stderr.write(
            f"\n{self.signal.name}: saving a checkpoint after this step; Ctrl-C ends at once\n"
        )
