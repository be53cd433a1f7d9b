"""Errors that a user can mend: one class per exit code, one message that names the file or key and the next step."""


class UserError(Exception):
    """Something outside diffunet is wrong; the message says what, what was kept and what to do."""

    exit_code = 2
    code = "E-USAGE"


class ConfigError(UserError, ValueError):
    """A config file, flag or argument is wrong (unknown key, wrong type, contradiction)."""

    code = "E-CONFIG"


class DataError(UserError):
    """The data set is missing, empty, broken or not what the config says."""

    exit_code = 3
    code = "E-DATA"


class CheckpointError(UserError):
    """Weights or a checkpoint are missing, damaged or belong to another network."""

    exit_code = 4
    code = "E-CHECKPOINT"


class StorageError(UserError):
    """The disk is full, read-only, failing, or the folder is in use."""

    exit_code = 5
    code = "E-STORAGE"


class NumericError(UserError):
    """Values that are not finite where finite ones are needed."""

    exit_code = 6
    code = "E-NUMERIC"


class UnsafeError(UserError):
    """A file that could run code or exhaust the machine is refused."""

    exit_code = 7
    code = "E-UNSAFE"


class MemoryLimitError(UserError):
    """The device or the host ran out of memory."""

    exit_code = 8
    code = "E-MEMORY"


class WorkerError(UserError):
    """A data worker or another rank died."""

    exit_code = 9
    code = "E-WORKER"


class Interrupted(UserError):
    """A signal asked the run to stop; its state is saved. The exit code says which signal it was."""

    code = "E-STOPPED"

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
