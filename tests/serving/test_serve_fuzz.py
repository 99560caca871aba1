"""Whatever the API's description allows, and much that it does not, is answered as it says; nothing is a fault."""

import pytest

from colbert_zero.serving.api import make_app
from colbert_zero.serving.service import Limits, Service
from helpers import DOCUMENTS

schemathesis = pytest.importorskip("schemathesis")

KEY = {"authorization": "Bearer the-key"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writable", [False, True])
def test_requests_made_from_the_description_find_no_fault(write_index, tmp_path, writable):
    from hypothesis import HealthCheck, settings
    from starlette.testclient import TestClient

    service = Service(write_index(tmp_path, DOCUMENTS), Limits(), writable, tell=lambda _: None)
    app = make_app(service, "the-key" if writable else None)
    statuses = set()
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        checks = [
            schemathesis.checks.CHECKS.get_one(name)
            for name in ("not_a_server_error", "status_code_conformance", "content_type_conformance",
                         "response_schema_conformance", "response_headers_conformance")
        ]  # fmt: skip

        def ask(case):
            answer = case.call(session=client, headers=KEY, base_url="http://127.0.0.1")
            statuses.add(answer.status_code)
            case.validate_response(answer, checks=checks)

        for operation in schema.get_all_operations():
            strategy = operation.ok().as_strategy()
            from hypothesis import given

            run = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            run(given(case=strategy)(ask))()
        assert client.get("/search?q=wing", headers=KEY).status_code == 200
    assert 200 in statuses
