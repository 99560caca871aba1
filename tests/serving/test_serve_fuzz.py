"""Whatever the API's description allows, and much that it does not, is answered as it says; nothing is a fault."""

import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest

from colbert_zero.serving.http.api import make_app
from colbert_zero.serving.http.server import Settings, bind, bounded
from colbert_zero.serving.http.service import Limits, Service
from helpers import DOCUMENTS, environment, wait_for

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method,ignored_auth"
)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
@pytest.mark.parametrize("writable", [False, True])
def test_requests_made_from_the_description_find_no_fault(write_index, tmp_path, writable):
    folder = write_index(tmp_path, DOCUMENTS)
    service = Service(folder, Limits(), writable, tell=lambda _: None)
    with bind("127.0.0.1", 0) as bound:
        server = bounded(make_app(service, "the-key"), Settings(folder, Limits()), lambda: None)
        thread = threading.Thread(target=server.run, args=[[bound]])
        thread.start()
        wait_for(lambda: server.started)
        try:
            words = [
                "run", f"http://127.0.0.1:{bound.getsockname()[1]}/openapi.json", "--header",
                "Authorization: Bearer the-key", "--checks", CHECKS, "--mode", "all", "--max-examples", "60",
                "--no-shrink", "--seed", "7", "--no-color", "--max-time", "150", "--continue-on-failure",
            ]  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", *words],
                cwd=tmp_path, env=environment(), capture_output=True, text=True,
            )  # fmt: skip
        finally:
            server.should_exit = True
            thread.join(60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.server_state.total_requests > 100
