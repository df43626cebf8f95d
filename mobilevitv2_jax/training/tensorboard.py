"""Scalars in the files that TensorBoard reads: TFRecords of protocol buffers.

Written here because there is little to write: tensorboardX imports all of PyTorch where it is
installed, and writes in a thread that dies of a full disk while the training waits for it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping

from etils import epath

from mobilevitv2_jax.data.tfrecord import frame

_START = 1  # SessionLog.SessionStatus


class EventFile:
    """One file of events, `events.out.tfevents.TIME.HOST.STEP`.

    Args:
        directory: where it is; on a disk.
        step: where the run continues; what an interrupted run has written after it is hidden.
    """

    def __init__(self, directory: epath.Path, step: int) -> None:
        # The step is in the name so that two attempts within a second are two files.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{step}"
        self._file = (directory / name).open("wb")
        self._write(_bytes(3, b"brain.Event:2"))
        if step:
            self._write(_integer(2, step + 1) + _bytes(7, _integer(1, _START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in values.items()
        )
        self._write(_integer(2, step) + _bytes(5, summary))

    def flush(self) -> None:
        """Hands what was written to the system."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        self._file.write(frame(_double(1, time.time()) + event))


# Fields of a message: number and kind, then the value. The numbers are those of TensorFlow's
# core/util/event.proto and core/framework/summary.proto.


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)
