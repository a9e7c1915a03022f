"""Whole commands, as a person or a script runs them: each in a process of its own, on files of its own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mux.client import SyncMuxClient
from tests.support.agents_for_http import agents_folder
from tests.support.process import MUX, clean_env, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working directory with a roster of small agents beside the shipped one."""
    agents_folder(tmp_path).rename(tmp_path / "agents")
    return tmp_path


def mux(home: Path, *args: str, stdin: str = "", code: int = 0, **env: str) -> tuple[str, str]:
    """Run a command to its end; its standard output and standard error."""
    done = subprocess.run(
        [*MUX, *args], cwd=home, env=clean_env(home / "home", **env), input=stdin, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@contextlib.contextmanager
def started(home: Path, *args: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A server as a process of its own, and the lines that it printed up to its address."""
    process = subprocess.Popen(
        [*MUX, "serve", "--port", "0", *args], cwd=home, env=clean_env(home / "home"),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while lines[-1] and not lines[-1].startswith("Mux is ready: "):
            lines.append(process.stdout.readline())
        assert lines[-1], "it ended"
        yield process, lines
    finally:
        process.kill()
        process.communicate()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- run --------------------------------------------------------------------------------------------------


def test_run_prints_lines_with_the_channels_name_where_there_is_no_terminal(home: Path) -> None:
    out, _ = mux(home, "run", "--store", "memory:", "-a", "counter=3", "-a", "analyst", "What is 17*23?")
    assert "counter │ 0 1 2" in out
    assert re.search(r"^analyst │ ✓ calculator: .*391", out, re.M)
    assert re.search(r"^run r\w+: completed$", out, re.M)


def test_run_json_is_the_log(home: Path) -> None:
    out, _ = mux(home, "run", "--store", "memory:", "-a", "counter", "--json", "-", stdin="3")
    log = events(out)
    assert [e["seq"] for e in log] == list(range(1, len(log) + 1))
    assert (log[0]["type"], log[-1]["type"]) == ("run_started", "run_finished")
    assert "".join(e["content"] for e in log if e["type"] == "token") == "0 1 2 "


def test_run_says_by_its_exit_code_whether_all_was_completed(home: Path) -> None:
    mux(home, "run", "--store", "memory:", "-a", "counter", "no number", code=1)
    _, errors = mux(home, "run", "--store", "memory:", "-a", "conter", "3", code=2)
    assert "Did you mean: counter" in errors
    assert "[agent_unknown]" in errors
    _, errors = mux(home, "run", "--url", "http://127.0.0.1:9", "hello", code=1)
    assert "mux serve" in errors
    assert "[server_unreachable]" in errors


def test_a_batch_gives_a_table_and_ndjson_and_tags_its_runs(home: Path) -> None:
    lines = [
        '"2"',
        '{"message": "3", "metadata": {"case": "three"}}',
        '{"message": "1", "agents": ["nobody"]}',
    ]
    (home / "prompts.jsonl").write_text("\n".join(lines))
    store = f"sqlite:{home / 'batch.db'}"
    args = ("run", "--store", store, "-a", "counter", "--file", "prompts.jsonl")
    out, table = mux(home, *args, "--json", code=1)
    results = {r["line"]: r for r in events(out)}
    assert [results[n]["status"] for n in (1, 2, 3)] == ["completed", "completed", "failed"]
    assert results[2]["channels"]["counter"]["text"] == "0 1 2 "
    assert results[3]["error"] == "agent_unknown"
    assert re.search(r"^2 .*completed .*counter: 0 1 2", table, re.M)
    out, _ = mux(home, *args, "--tag", "again", code=1)
    assert re.search(r"^1 .*completed +counter: 0 1 ", out, re.M)
    with serving(home, "--store", store) as url, SyncMuxClient(url) as client:
        tagged = client.runs(**{"metadata.batch": "prompts"})["runs"]
        assert sorted(r["metadata"]["line"] for r in tagged) == [1, 2]
        assert {r["metadata"].get("case") for r in tagged} == {None, "three"}
        assert len(client.runs(**{"metadata.batch": "again"})["runs"]) == 2


def test_run_uses_the_server_of_the_same_store_and_replay_plays_its_runs(home: Path) -> None:
    store = f"sqlite:{home / 'one.db'}"
    with serving(home, "--store", store) as url, SyncMuxClient(url) as client:
        out, _ = mux(home, "run", "--store", store, "-a", "counter", "--json", "3")
        run = events(out)[0]["run"]
        assert [r["run"] for r in client.runs()["runs"]] == [run]
        again, _ = mux(home, "replay", run, "--store", store, "--json", "--speed", "0")
        assert again == out
        said, _ = mux(home, "run", "--store", store, "--thread", events(out)[0]["thread"], "2")
        assert "counter │ 0 1" in said
        _, errors = mux(home, "run", "--store", store, "--model", "no:where", "-a", "counter", "1")
        assert f"server at {url} runs with its own settings, so --model has no effect" in errors
        _, errors = mux(home, "serve", "--port", "0", "--store", store, code=1)
        assert url in errors
        assert "[store_locked]" in errors
        assert "in use by the server at" in mux(home, "doctor", "--store", store, code=0)[0]
    # Without a server the same store is opened here.
    assert mux(home, "replay", run, "--store", store, "--json", "--speed", "0")[0] == out
    file = home / "run.ndjson"
    file.write_text(out)
    assert mux(home, "replay", str(file), "--json", "--speed", "0")[0] == out
    assert "counter │ 0 1 2" in mux(home, "replay", str(file), "--plain", "--speed", "50")[0]
    _, errors = mux(home, "replay", "rnothing", "--store", store, code=2)
    assert "neither a file 'rnothing' nor a run" in errors
    assert "[run_not_found]" in errors


# --- what is there ----------------------------------------------------------------------------------------


def test_agents_lists_the_roster_and_what_could_not_be_loaded(home: Path) -> None:
    out, _ = mux(home, "agents")
    assert "counter" in out
    assert "researcher" in out
    (home / "agents" / "broken.py").write_text("raise RuntimeError('no')")
    out, errors = mux(home, "agents", "--json", code=1)
    assert {"counter", "analyst"} <= {a["name"] for a in json.loads(out)["agents"]}
    assert "broken.py" in errors


def test_config_shows_what_is_in_force(home: Path) -> None:
    (home / "mux.toml").write_text(
        'model = "local:m"\n[providers.local]\nbase_url = "http://u:canary-1@127.0.0.1:1/v1?key=canary-2"\n'
        'api_key_env = "LOCAL_KEY"\nheaders_env = {Authorization = "LOCAL_AUTH"}\n'
        'params = {max_tokens = 5, user_token = "canary-3"}\n'
        '[mcp.a]\ncommand = ["srv", "--api-key", "canary-4", "--url=redis://:canary-5@h/0"]\n'
        'env = {MODE = "canary-6"}\nenv_from = ["SECRET_NAME"]\n'
    )
    out, _ = mux(home, "config", "--store", "memory:", MUX_PORT="9999", LOCAL_KEY="sk-secret")
    shown = json.loads(out)
    assert (shown["model"], shown["store"], shown["port"]) == ("local:m", "memory:", 9999)
    assert "sk-secret" not in out
    assert "canary" not in out
    assert {"LOCAL_KEY", "LOCAL_AUTH", "SECRET_NAME", "--api-key"} <= set(re.findall(r"[A-Za-z_-]+", out))
    assert shown["providers"]["local"]["params"]["max_tokens"] == 5


def test_doctor_says_what_is_wrong_and_what_to_do(home: Path) -> None:
    out, _ = mux(home, "doctor", "--store", "memory:")
    assert "✓ store memory:" in out
    assert "rehearsal" in out
    (home / "mux.toml").write_text('[providers.dead]\nbase_url = "http://127.0.0.1:9/v1"\n')
    out, _ = mux(home, "doctor", "--store", "memory:", code=1)
    assert re.search(r"✗ .*dead", out)
    out, _ = mux(home, "doctor", "--store", "redis://host:port", code=1)
    assert "✗ store: This redis URL can't be used." in out
    assert "rehearsal" in out  # the other checks are done all the same


def test_a_document_folder_that_is_not_there_is_said(home: Path) -> None:
    flags = ("--store", "memory:", "--docs", "none")
    assert "! there is no document folder none" in mux(home, "doctor", *flags)[0]
    assert "mux: there is no document folder none" in mux(home, "run", *flags, "-a", "counter", "1")[1]
    with started(home, *flags) as (_, lines):
        assert "warning: there is no document folder none\n" in lines


def test_doctor_finds_the_other_project_named_mux(home: Path) -> None:
    """`pip install mux` puts a package of another project where ours is imported from."""
    info = home / "site" / "mux-0.7.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mux\nVersion: 0.7\n")
    out, _ = mux(home, "doctor", "--store", "memory:", code=1, PYTHONPATH=str(home / "site"))
    assert "✗ the package 'mux' 0.7 is another project" in out
    assert "pip uninstall mux" in out


def test_a_taken_port_names_its_owner_and_a_way_out(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, errors = mux(home, "serve", "--port", str(port), "--store", "memory:", code=2)
    assert f"Port {port} is taken by process {os.getpid()}" in errors
    assert f"mux serve --port {port + 1}" in errors
    assert errors.strip().splitlines()[-1].endswith("[port_taken]")


# --- in a terminal ----------------------------------------------------------------------------------------


class Terminal:
    """A command in a pseudo-terminal."""

    def __init__(self, home: Path, args: Sequence[str], rows: int = 24, columns: int = 80) -> None:
        self.seen = ""
        self._master, slave = pty.openpty()
        env = clean_env(home / "home", TERM="xterm-256color", LINES=str(rows), COLUMNS=str(columns))
        self.process = subprocess.Popen(
            [*MUX, *args], cwd=home, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def until(self, pattern: str, seconds: float = 40) -> None:
        """Read until this was shown."""
        os.set_blocking(self._master, False)
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline, self.seen[-3000:]
            if not self._more():
                time.sleep(0.01)

    def _more(self) -> bool:
        try:
            self.seen += os.read(self._master, 65536).decode(errors="replace")
        except BlockingIOError:
            return False
        except OSError as e:
            if e.errno != errno.EIO:  # what Linux says when the other side is closed
                raise
            return False
        return True

    def end(self) -> int:
        """Its exit code, when all that it wrote was read."""
        deadline = time.monotonic() + 40
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen[-3000:]
            if not self._more():
                time.sleep(0.01)
        while self._more():
            pass
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(home: Path) -> Iterator[Any]:
    opened: list[Terminal] = []

    def open_(*args: str, **size: int) -> Terminal:
        opened.append(Terminal(home, args, **size))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def test_panes_live_on_the_other_screen_and_answers_stay_in_the_scroll_back(terminal: Any) -> None:
    shown = terminal("run", "--store", "memory:", "-a", "counter", "-a", "analyst=What is 17*23?", "3")
    assert shown.end() == 0
    live, _, left = shown.seen.rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in live
    assert "✓ counter" in left
    assert "✓ analyst" in left
    assert "391" in left
    assert shown.seen.rstrip().endswith("╯") or "\x1b[?25h" in shown.seen  # the cursor is back


def test_ctrl_c_cancels_the_run_and_shows_what_there_is(terminal: Any) -> None:
    shown = terminal("run", "--store", "memory:", "-a", "hold", "x")
    shown.until("holding")
    os.killpg(shown.process.pid, signal.SIGINT)
    assert shown.end() == 1
    left = shown.seen.rpartition("\x1b[?1049l")[2]
    assert "■ hold" in left
    assert "cancelled" in left
    assert "holding" in left


def test_ctrl_c_cancels_the_runs_of_a_batch(home: Path) -> None:
    store = f"sqlite:{home / 'one.db'}"
    (home / "prompts.jsonl").write_text('"a"\n"b"\n')
    with serving(home, "--store", store) as url, SyncMuxClient(url) as client:
        command = [*MUX, "run", "--url", url, "-a", "hold", "--file", "prompts.jsonl"]
        process = subprocess.Popen(command, cwd=home, env=clean_env(home / "home"))
        try:
            deadline = time.monotonic() + 40
            while [r["status"] for r in client.runs()["runs"]] != ["running", "running"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
            process.wait()
        assert [r["status"] for r in client.runs()["runs"]] == ["cancelled", "cancelled"]


def test_a_second_ctrl_c_ends_the_command_whatever_the_server_does(home: Path) -> None:
    with started(home, "--store", "memory:") as (server, lines):
        url = lines[-1].split(": ", 1)[1].strip()
        command = [*MUX, "run", "--url", url, "-a", "hold", "--json", "x"]
        process = subprocess.Popen(command, cwd=home, env=clean_env(home / "home"), stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline()  # it is shown, so that Ctrl-C cancels the run
            server.send_signal(signal.SIGSTOP)
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)  # for the server, which does not answer
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            server.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()


def test_a_server_ends_well_at_ctrl_c(home: Path) -> None:
    with started(home, "--store", "memory:") as (server, _):
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


def test_help_and_versions_come_without_loading_anything(home: Path) -> None:
    assert re.fullmatch(r"mux \d+\.\d+\.\d+\n", mux(home, "--version")[0])
    command = [sys.executable, "-X", "importtime", "-m", "mux.cli", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--file JSONL" in done.stdout
    for heavy in ("aiohttp", "openai", "rich.live"):
        assert not re.search(rf"\| +{heavy}$", done.stderr, re.M), heavy


def test_known_agents_are_listed_and_those_on_path_are_offered(home: Path) -> None:
    folder = home / "bin"
    folder.mkdir()
    program = folder / "opencode"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    out, _ = mux(home, "agents", "--known", "--json", PATH=str(folder))
    found = json.loads(out)["agents"]
    assert [a["name"] for a in found if a["path"]] == ["opencode"]
    assert {"claude-code", "codex", "gemini", "qwen-code", "goose"} <= {a["name"] for a in found}
    out, _ = mux(home, "agents", "--known", PATH=str(folder))
    assert '[acp.opencode]\ncommand = ["opencode", "acp"]' in out
    assert "[acp.goose]" not in out
