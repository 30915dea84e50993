import pytest

from recurra.errors import ConfigError, ConflictError, CredentialsError, NotFoundError, StorageError
from recurra.storage.answers import Answer, Place, meaning
from recurra.storage.retry import TransientError

PLACE = Place("http://127.0.0.1:8333", "shop", "a/b")


@pytest.mark.parametrize(
    ("status", "code", "kind", "text"),
    [
        (404, "NoSuchBucket", NotFoundError, r"no bucket 'shop' at http://127.0.0.1:8333. Create it"),
        (404, "NoSuchKey", NotFoundError, r"s3://shop/a/b does not exist"),
        (404, "404", NotFoundError, r"s3://shop/a/b does not exist"),
        (403, "InvalidAccessKeyId", CredentialsError, r"Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (403, "SignatureDoesNotMatch", CredentialsError, "SignatureDoesNotMatch"),
        (400, "ExpiredToken", CredentialsError, "ExpiredToken"),
        (403, "403", CredentialsError, "refuses these credentials for s3://shop/a/b"),
        (403, "RequestTimeTooSkewed", CredentialsError, "clock is wrong"),
        (412, "PreconditionFailed", ConflictError, "somebody else created it first"),
        (301, "PermanentRedirect", ConfigError, "Set AWS_REGION"),
        (501, "NotImplemented", ConfigError, "conditional writes"),
        (400, "EntityTooLarge", StorageError, "EntityTooLarge"),
    ],
)
def test_an_answer_that_retrying_does_not_cure_says_what_to_do(status, code, kind, text):
    """Each of these has ended an evening for somebody; the message has to name the way out."""
    error = meaning(Answer(status, code, "said the store"), PLACE)

    assert type(error) is kind
    with pytest.raises(kind, match=text):
        raise error


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (502, "502"),
        (429, "TooManyRequests"),
        (400, "RequestTimeout"),
        (409, "ConditionalRequestConflict"),
    ],
)
def test_an_answer_of_a_busy_store_is_tried_again(status, code):
    """They end by themselves, and the store has shown that it is there."""
    error = meaning(Answer(status, code, "", retry_after_s=3.0), PLACE)

    assert isinstance(error, TransientError)
    assert (error.answered, error.retry_after_s) == (True, 3.0)
