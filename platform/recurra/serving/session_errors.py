"""What can be wrong with a session, in words for its client."""

from __future__ import annotations

from recurra.errors import RequestError, StorageError

UNKNOWN = "session_not_found"


class OvertakenError(RequestError):
    """Another request has changed the session since it was read (409)."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"Another request has changed the session meanwhile: it is at step {step}. "
            "Send each step with its 'step' number, and the next one after the answer.",
            status=409,
            code="step_conflict",
            param="step",
        )


class ForeignBundleError(RequestError):
    """The session goes on with another bundle than the one that was asked (412)."""

    def __init__(self, digest: str, served: str) -> None:
        super().__init__(
            f"The session belongs to bundle {digest[:12]} of the model, and this service serves {served[:12]}. "
            "Create a new session, or roll the alias back.",
            status=412,
            code="digest_mismatch",
        )
        self.digest = digest


def unknown(id: str) -> RequestError:
    """Nobody has heard of the session (404)."""
    return RequestError(
        f"There is no session '{id[:64]}'. Create one with POST /v1/sessions.", status=404, code=UNKNOWN
    )


def store_failed(exc: StorageError) -> RequestError:
    """Neither the vault nor the store answers (503)."""
    return RequestError(
        f"The session's state could not be kept or read: {exc} Send the request again with the same 'step' number.",
        status=503,
        code="session_store_failed",
        retry_after_s=1.0,
    )


def leaving() -> RequestError:
    """The end of a stream that another replica goes on with (503)."""
    return RequestError(
        "This replica is leaving. Send the request again with the tokens that have come as generate.resume: another "
        "replica goes on after them.",
        status=503,
        code="migrate",
        retry_after_s=1.0,
    )
