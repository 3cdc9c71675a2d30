"""Every exception that cloudem raises on purpose.

Each also subclasses the builtin that it resembles, so that callers who do not know cloudem can still catch it. A
message says what came, what was needed and what to try.
"""


class CloudemError(Exception):
    """Base of all errors that cloudem raises on purpose; the command line prints its message as one line."""


class ParameterError(CloudemError, ValueError):
    """A parameter has a value that the job cannot use."""


class FormatError(CloudemError, ValueError):
    """A file does not have the form that its name or header promises."""


class MissingInputError(CloudemError, FileNotFoundError):
    """An input named by the user does not exist."""


class MissingColumnError(CloudemError, KeyError):
    """A particle table lacks a column that the job needs."""

    def __str__(self) -> str:
        """Return the message without the quotes that KeyError puts around it."""
        return str(self.args[0]) if self.args else ""


class InconsistentDataError(CloudemError, ValueError):
    """Inputs contradict one another: box sizes, pixel sizes, counts."""


class OutputExistsError(CloudemError, FileExistsError):
    """The output is there already, and was made by something else."""


class StorageError(CloudemError, OSError):
    """Reading or writing the store failed."""


class DamagedShardError(StorageError):
    """A shard of images is missing or not what was written."""


class LeaseHeldError(CloudemError, BlockingIOError):
    """Another client is writing there."""


class LeaseLostError(CloudemError, RuntimeError):
    """Another client writes there now, or may: this one must not go on."""


class OutOfMemoryError(CloudemError, MemoryError):
    """A job would need, or needed, more memory than there is."""


class StoppedError(CloudemError, RuntimeError):
    """A job was asked to stop, and has stopped where it can go on later."""


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
