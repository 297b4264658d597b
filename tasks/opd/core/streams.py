"""Standard error of a process whose reader may be gone (`2>&1 | head`), or that was started without one (`2>&-`)."""
import io
import os
import sys


class Lasting(io.FileIO):
    """Writes to a descriptor for as long as somebody takes it; what nobody takes is dropped."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def keep_printing() -> None:
    """Make that nothing printed to standard error is an error, whoever prints it; call it first in a process.

    A standard stream that is closed becomes /dev/null: the next file that is opened would get its number, and be
    written to. Where standard error was replaced already, by a test say, it stays so.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    if sys.stderr is not sys.__stderr__:
        return
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.BufferedWriter(Lasting(2, "w", closefd=False)), encoding,
                                                   errors="backslashreplace", line_buffering=True)
