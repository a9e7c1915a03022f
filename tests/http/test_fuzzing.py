"""schemathesis against the running server: whatever the document allows, and much that it forbids."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mux.client import SyncMuxClient
from tests.support.agents_for_http import agents_folder
from tests.support.process import ROOT, clean_env, serving

SECONDS = 30
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "unsupported_method",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_request_is_answered_with_a_5xx_or_with_what_the_document_does_not_say(tmp_path: Path) -> None:
    """Streams too: each of their blocks is checked against the schema. Those of ``hold`` never end by
    themselves; the first cancel that is tried ends them, or else the request's timeout."""
    agents = str(agents_folder(tmp_path))
    options = ["--store", "memory:", "--model", "rehearsal", "--agents", agents]
    with serving(tmp_path, *options, "--insecure") as url:  # or the first key that is made would shut it out
        with SyncMuxClient(url) as client:
            done, held = client.start("3", agents=["counter", "analyst"]), client.start("1", agents=["hold"])
            assert done.wait()["status"] == "completed"
        names = {
            "run": [done.id, done.id, held.id],
            "channel": ["counter", "analyst", "hold"],
            "model": ["counter", "analyst"],
        }
        env = clean_env(tmp_path, MUX_FUZZ_NAMES=json.dumps(names), COLUMNS="200")
        env |= {"SCHEMATHESIS_HOOKS": "tests.support.fuzzing", "PYTHONPATH": str(ROOT)}
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json",
            "--max-time", str(SECONDS), "--checks", ",".join(CHECKS), "--seed", "11",
            "--request-timeout", "15", "--continue-on-failure", "--no-shrink", "--no-color",
        ]  # fmt: skip
        run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-12000:] + run.stderr[-2000:]
