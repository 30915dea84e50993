"""The exception tree. Every error that a user can cause or must act on is one of these.

    RecurraError                 exit code, HTTP status
    ├── ConfigError              2   422  a setting of the job file, the command line or the environment
    ├── DataError                3   422  what a dataset or an input file holds
    │   ├── SchemaError          3   422  columns differ from what the task needs
    │   └── IntegrityError       3   500  bytes differ from what the manifest recorded
    ├── StorageError             4   503  the object store
    │   ├── NotFoundError        4   404  bucket, object or dataset does not exist
    │   ├── CredentialsError     4   503  the store refuses who we are
    │   ├── ConflictError        4   409  somebody else wrote the object first
    │   └── UnreachableError     4   503  no answer within the deadline
    ├── ModelError               5   422  what the model cannot do (a bidirectional core cannot step)
    ├── RegistryError            5   404  unknown model, alias or bundle; bundle of another format
    ├── TrainingError            6   500  a run that cannot go on
    │   └── DivergedError        6   500  loss or gradient is not finite
    ├── ClusterError             7   503  Ray or Kubernetes: cannot connect, cannot place, cannot submit
    └── RequestError             8   any  what one HTTP client asked for; carries its own status and code

A message names the setting, the value seen, and what to type instead. The command line prints the
message alone and leaves with the exit code; serving answers with the status in OpenAI's envelope.
"""

from typing import ClassVar


class RecurraError(Exception):
    """Root of the tree: catch it at an edge (command line, HTTP handler) and nowhere else."""

    exit_code: ClassVar[int] = 1
    status: int = 500
    code: str = "internal_error"


class ConfigError(RecurraError):
    """A setting is unknown, out of range, or contradicts another one."""

    exit_code = 2
    status = 422
    code = "invalid_config"


class DataError(RecurraError):
    """A dataset or an input file holds something that cannot be used."""

    exit_code = 3
    status = 422
    code = "invalid_data"


class SchemaError(DataError):
    """A dataset lacks a column that the task needs, or has it with another type."""

    code = "schema_mismatch"


class IntegrityError(DataError):
    """Bytes in the store differ from the hash or length that the manifest recorded."""

    status = 500
    code = "integrity"


class StorageError(RecurraError):
    """The object store answered with an error that retrying does not cure."""

    exit_code = 4
    status = 503
    code = "storage"


class NotFoundError(StorageError):
    """The bucket, object or dataset does not exist."""

    status = 404
    code = "not_found"


class CredentialsError(StorageError):
    """The store refused the access key, the secret or the session token."""

    code = "credentials"


class ConflictError(StorageError):
    """A conditional write lost: somebody else wrote this object first."""

    status = 409
    code = "conflict"


class UnreachableError(StorageError):
    """The store did not answer within the deadline, however often it was asked."""

    code = "unreachable"


class ModelError(RecurraError):
    """The model cannot do what was asked of it, such as a bidirectional core that is asked to step."""

    exit_code = 5
    status = 422
    code = "model"


class RegistryError(RecurraError):
    """Unknown model, alias or bundle, or a bundle written in another format version."""

    exit_code = 5
    status = 404
    code = "model_not_found"


class TrainingError(RecurraError):
    """A training run cannot start or cannot go on."""

    exit_code = 6
    code = "training"


class DivergedError(TrainingError):
    """Loss or gradients stopped being finite more often than the guard allows."""

    code = "diverged"


class ClusterError(RecurraError):
    """Ray or Kubernetes cannot be reached, or cannot place what was asked for."""

    exit_code = 7
    status = 503
    code = "cluster"


class RequestError(RecurraError):
    """One HTTP request that cannot be answered as asked.

    Args:
        message: What was wrong with the value that was seen, and what to send instead.
        status: HTTP status (404, 409, 410, 412, 413, 422, 429, 503 or 504).
        code: Short machine-readable name, such as `token_out_of_range`.
        param: The field of the request that is at fault, if one is.
        retry_after_s: Seconds after which to try again; sent as `Retry-After`.
    """

    exit_code = 8

    def __init__(
        self,
        message: str,
        *,
        status: int = 422,
        code: str = "invalid_request",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
