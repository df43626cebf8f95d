"""Errors that are meant for the user: the command line prints their message, and no traceback."""


class UserError(Exception):
    """Something that the user can mend. The message says what is wrong, and what to do about it.

    Attributes:
        status: exit status of the command line.
    """

    status = 1


class ConfigError(UserError, ValueError):
    """A config or command line that cannot be used."""

    status = 2


class DataError(UserError, RuntimeError):
    """Data that cannot be prepared or read."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or read."""


class NonFiniteError(UserError, RuntimeError):
    """Training that was ended because step after step was not finite."""


class DeviceMemoryError(UserError, RuntimeError):
    """A program that does not fit the memory of a device."""


class WeightsError(UserError, ValueError):
    """A file of weights that cannot be read, or whose weights are another model's."""


class ImageError(UserError, ValueError):
    """A picture that cannot be read, or that is none."""


class ExportError(UserError, RuntimeError):
    """An artefact that cannot be made, or that does not compute what the model does."""
