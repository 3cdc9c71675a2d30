"""Every exception that cloudem raises on purpose.

Each also subclasses the builtin that it resembles, so that callers who do not know cloudem can still catch it. A
message says what came, what was needed and what to try.

What a message quotes may come from a damaged or hostile file: `one_line`, `shown` and `parsing` see to it that any such
text is short, on one line, and harmless to a terminal.
"""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 400
"""Characters of a message, so that it is at most three lines of a usual terminal."""


class CloudemError(Exception):
    """Base of all errors that cloudem raises on purpose; its message is one line (see `one_line`)."""

    def __str__(self) -> str:
        """Return the message, whatever the builtin that this resembles makes of it."""
        return one_line(str(self.args[0])) if self.args else ""


class ParameterError(CloudemError, ValueError):
    """A parameter has a value that the job cannot use."""


class FormatError(CloudemError, ValueError):
    """A file does not have the form that its name or header promises."""


class MissingInputError(CloudemError, FileNotFoundError):
    """An input named by the user does not exist."""


class MissingColumnError(CloudemError, KeyError):
    """A particle table lacks a column that the job needs."""


class InconsistentDataError(CloudemError, ValueError):
    """Inputs contradict one another: box sizes, pixel sizes, counts."""


class OutputExistsError(CloudemError, FileExistsError):
    """The output is there already, and was made by something else."""


class StorageError(CloudemError, OSError):
    """Reading or writing the store failed."""


class DamagedShardError(StorageError):
    """A shard of images is missing or not what was written."""


class DamagedArrayError(StorageError):
    """A chunk of an array is missing or not what was written."""


class ChangedFileError(StorageError):
    """A file was changed or deleted since it was opened or listed."""


class LeaseHeldError(CloudemError, BlockingIOError):
    """Another client is writing there."""


class LeaseLostError(CloudemError, RuntimeError):
    """Another client writes there now, or may: this one must not go on."""


class OutOfMemoryError(CloudemError, MemoryError):
    """A job would need, or needed, more memory than there is."""


class StoppedError(CloudemError, RuntimeError):
    """A job was asked to stop, and has stopped where it can go on later."""


class DecisionError(CloudemError, RuntimeError):
    """A workflow has stopped because a human has to decide how to go on."""


class WorkerLostError(CloudemError, RuntimeError):
    """The cluster lost workers, and with them the work that could not be recomputed."""


class ProviderError(CloudemError, OSError):
    """A provider of machines refused or failed."""


class ThrottledError(ProviderError):
    """A provider was asked too often; the same may be asked later."""


class CapacityError(ProviderError):
    """None of the machines asked for is to be had now."""


class QuotaError(ProviderError):
    """The account's limit does not allow as many machines."""


class BudgetError(CloudemError, ValueError):
    """Nothing that was asked for fits into time and money."""


OF_ONE_ITEM = (
    FormatError, MissingInputError, MissingColumnError, InconsistentDataError, ParameterError,
    DamagedShardError, DamagedArrayError, ChangedFileError,
)  # fmt: skip
"""What may be wrong with one micrograph while the others are well."""


def recorded_reason(error: CloudemError, longest: int = LONGEST) -> str:
    """Return what is recorded of a micrograph or another item that cannot be used.

    Raises
    ------
    CloudemError
        The error itself where it does not concern the item alone: a store that cannot be reached, a full disk, memory,
        a lease. The job has to stop then, so that it can go on when that is mended.
    """
    if not isinstance(error, OF_ONE_ITEM):
        raise error
    return one_line(str(error), longest)


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return a text as it may be shown: on one line, control characters escaped, without its middle if it is long.

    The beginning says which file it is about and the end what to try.
    """
    line = _without_middle(" ".join(text.split()), longest)
    return _without_middle(printable(line), longest)


def printable(text: str) -> str:
    """Return a text without characters that a terminal would act upon, apart from line breaks: those are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def shown(value: object, longest: int = 60) -> str:
    """Return a value as a message quotes it, cut to a length; one that Python will not write out is described."""
    try:
        return one_line(repr(value), longest)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"a value that is too long to show ({type(value).__name__})"


@contextmanager
def parsing(subject: str, advice: str, kind: type[CloudemError] = FormatError) -> Iterator[None]:
    """Turn whatever a parser raises into one error that names the file.

    What parsers raise about damaged content is no fixed list: besides what they document there are errors of index,
    key, type, overflow and recursion. So everything counts; hence nothing else belongs into such a block.

    Parameters
    ----------
    subject
        The file and what is wrong with it: ``"s3://b/run.json is damaged"``.
    advice
        What to try.
    kind
        Class of the error.

    Raises
    ------
    CloudemError
        Of that kind. Errors of reading itself (an OSError that names a file, a StorageError) pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StorageError) or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise kind(f"{subject}: {reason(error)}; {advice}") from error


def reason(error: Exception) -> str:
    """Return what an exception of a library says, in a few words."""
    text = one_line(str(error).strip().partition("\n")[0], 150)
    if isinstance(error, LookupError) or not text:  # its text alone is a name
        return f"{type(error).__name__} {text}".strip()
    return text.rstrip(".;")


def _without_middle(line: str, longest: int) -> str:
    if len(line) <= longest:
        return line
    end = (longest - 3) * 2 // 5
    return f"{line[: longest - 3 - end]} … {line[len(line) - end :]}"
