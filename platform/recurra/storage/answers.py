"""What an S3 error answer means: which of our errors, and whether another attempt may cure it. Knows no client."""

from __future__ import annotations

from dataclasses import dataclass

from recurra.errors import ConfigError, ConflictError, CredentialsError, NotFoundError, StorageError
from recurra.storage.reading import OutsideRangeError
from recurra.storage.retry import TransientError

_CREDENTIALS = {
    "AccessDenied",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_TRANSIENT = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "TooManyRequests",
}


@dataclass(frozen=True)
class Place:
    """What was being talked about, for messages."""

    endpoint: str
    """The address of the store, or "AWS"."""
    bucket: str
    key: str = ""
    """From the root of the bucket; empty when the bucket itself is meant."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    @property
    def no_bucket(self) -> NotFoundError:
        return NotFoundError(
            f"There is no bucket '{self.bucket}' at {self.endpoint}. Create it "
            f"(aws s3 mb s3://{self.bucket}), or name one that exists."
        )

    @property
    def no_object(self) -> NotFoundError:
        return NotFoundError(f"{self} does not exist at {self.endpoint}. Check the address.")


@dataclass(frozen=True)
class Answer:
    """An error answer of the store."""

    status: int
    code: str
    """Such as `NoSuchKey`; the status as text when the answer had no body."""
    message: str
    retry_after_s: float = 0.0


def meaning(answer: Answer, place: Place) -> Exception:
    """The error to raise: a `TransientError` for the retry loop, or the one that the caller sees."""
    said = f"HTTP {answer.status} {answer.code}: {answer.message}".rstrip(": ")
    if answer.code == "NoSuchBucket":
        return place.no_bucket
    if answer.code == "RequestTimeTooSkewed":
        return CredentialsError(f"{place.endpoint} says that this machine's clock is wrong. Set it, then try again.")
    if answer.code in _TRANSIENT or answer.status in (408, 429) or (answer.status >= 500 and answer.status != 501):
        return TransientError(f"{place.endpoint} answered {said}", answered=True, retry_after_s=answer.retry_after_s)
    if answer.code in _CREDENTIALS or answer.status in (401, 403):
        return CredentialsError(
            f"{place.endpoint} refuses these credentials for {place} ({answer.code}). "
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key that may read and write there."
        )
    if answer.code == "NoSuchKey" or answer.status == 404:
        return place.no_object
    if answer.status == 416:
        return OutsideRangeError(f"{place} ends before the range that was asked for.")
    if answer.code in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists") or answer.status == 412:
        return ConflictError(f"{place} is there already; somebody else created it first.")
    if answer.status == 501:
        return ConfigError(
            f"{place.endpoint} does not implement what {place} needs ({said}). Use a store that has conditional writes."
        )
    if answer.status in (301, 307, 400) and answer.code in ("PermanentRedirect", "IllegalLocationConstraintException"):
        return ConfigError(f"Bucket '{place.bucket}' is in another region. Set AWS_REGION to it ({answer.message}).")
    return StorageError(f"{place.endpoint} refused {place}: {said}.")
