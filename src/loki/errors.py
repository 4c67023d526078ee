"""Errors that reach the user as one line.

Raise `LokiError` for anything the user can mend: its text says what is wrong, with which value, and what to do.
The command line prints it without a traceback and leaves with `exit_code`.
"""


class LokiError(Exception):
    """Bad usage or input. The command line exits with code 2."""

    exit_code = 2


class CheckFailed(LokiError):  # noqa: N818 - it names what happened, as pytest and click do
    """A check that the user asked for did not hold. The command line exits with code 1."""

    exit_code = 1


class RankError(LokiError):
    """A failure of one process among several, which only this process can report."""


def require(settings: object, name: str, holds: bool, wanted: str) -> None:
    """Check a value of a settings class whose fields are called as the options of the command line.

    Args:
        settings: that has the value.
        name: of the field.
        holds: whether the value is allowed.
        wanted: which values are, after "it must be".

    Raises:
        LokiError: if `holds` is not true.
    """
    if not holds:
        option = "--" + name.replace("_", "-")
        raise LokiError(f"{option} {getattr(settings, name)} is out of range: it must be {wanted}")


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of a device or of the machine is full.

    By name and text, so that PyTorch need not be imported: its CPU allocator raises a plain `RuntimeError`.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's text, for use inside a message of our own."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
