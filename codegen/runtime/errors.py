"""The errors a kernel package raises on purpose; each message names a cause and a way out."""

from __future__ import annotations


class PackageError(Exception):
    """Anything a user of a package can mend; the text is meant to be shown without a traceback."""


class ChangedFileError(PackageError):
    """A file of the package is not the one its manifest, or the caller, expects."""


class UnsupportedMachineError(PackageError):
    """This machine lacks what the kernels were built for."""


class InputError(PackageError, ValueError):
    """An operand with a wrong name, dtype, shape or device."""


class KernelFailedError(PackageError, RuntimeError):
    """A kernel or an island reported a failure at run time."""
