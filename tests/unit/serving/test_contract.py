"""The OpenAPI document against the application, by schemathesis: what is sent comes from the document alone."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.unit.serving.conftest import language_service

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def contract(serve, store):
    """The document of a small language model with sessions, bound to its server."""
    server = serve(language_service(store.child("contract"), max_new_tokens=8, max_request_bytes=1 << 14))
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_operation_answers_as_the_document_says(contract):
    """Law: a request made from the document is never a server error, and its answer has a described status and shape."""
    operations = [found.ok() for found in contract.get_all_operations()]
    for operation in operations:

        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def answers_as_described(case):
            case.call_and_validate(checks=CHECKS)

        answers_as_described()
    assert len(operations) > 20
