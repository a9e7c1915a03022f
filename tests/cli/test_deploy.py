"""Templates for running it elsewhere: they are what their programs read, and what they say is accepted here.
nginx's is tried with nginx in tests/service/test_nginx.py."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import mux
from mux.cli import main
from mux.cli.deploy import TEMPLATES
from mux.cli.parser import parse
from mux.http.app import ROUTES
from mux.settings import Settings
from tests.support.checker import http
from tests.support.service import running


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["deploy", *argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("what", sorted(TEMPLATES.keys() - {"grafana", "alerts"}))
def test_a_template_has_what_was_asked_filled_in(capsys: pytest.CaptureFixture[str], what: str) -> None:
    text = printed(capsys, what, "--domain", "agents.example.org", "--port", "9123")
    assert not re.search(r"@[A-Z]+@", text)
    assert "mux.example.com" not in text
    assert "agents.example.org" in text or what == "systemd"
    assert "9123" in text or what == "kubernetes"  # there a pod has its own
    for written in re.findall(r"\[(?:http|access)\] \w+ = .*", text):
        section, rest = written.split("] ", 1)
        Settings.model_validate(tomllib.loads(f"{section}]\n{rest}"))


def test_what_is_no_host_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["deploy", "nginx", "--domain", "a; rm -rf /"])
    assert "is no host name" in capsys.readouterr().err


def test_systemd_starts_what_we_understand(capsys: pytest.CaptureFixture[str]) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(printed(capsys, "systemd"))
    assert unit.sections() == ["Unit", "Service", "Install"]
    program, *argv = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/mux")
    parse(argv)
    name, _, store = unit["Service"]["Environment"].partition("=")
    assert (name, Settings(store=store).store) == ("MUX_STORE", store)


def test_compose_starts_what_we_understand(capsys: pytest.CaptureFixture[str]) -> None:
    compose = yaml.safe_load(printed(capsys, "compose", "--port", "9123"))
    assert compose.keys() == {"services", "volumes"}
    service = compose["services"]["mux"]
    image = service["build"]["dockerfile_inline"]
    (command,) = re.findall(r"^CMD (\[.*\])$", image, re.M)
    args = parse(yaml.safe_load(command))
    assert service["ports"] == [f"127.0.0.1:9123:{args.port}"]
    assert f"=={mux.__version__}" in image
    assert "noeviction" in compose["services"]["valkey"]["command"]  # another policy is refused at the start
    assert service["read_only"]


def test_kubernetes_starts_and_asks_what_we_understand(capsys: pytest.CaptureFixture[str]) -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(printed(capsys, "kubernetes")))
    kinds = {d["kind"]: d for d in documents}
    assert kinds.keys() == {"Secret", "ConfigMap", "Deployment", "Service", "Ingress"}
    Settings.model_validate(tomllib.loads(kinds["ConfigMap"]["data"]["mux.toml"]))
    pod = kinds["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    args = parse(container["args"])
    assert args.port == container["ports"][0]["containerPort"]
    paths = {route.path for route in ROUTES}
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert kinds["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}


def known_metrics() -> set[str]:
    """Every series that a server may show, by the names in the manual, which the next test compares."""
    table = (Path(mux.__file__).parent / "docs" / "operations.md").read_text()
    return set(re.findall(r"`(mux_[a-z_]+)`", table))


async def test_the_manual_names_every_metric() -> None:
    async with running() as url, http("GET", f"{url}/metrics") as response:
        shown = set(re.findall(r"^# TYPE (mux_[a-z_]+) ", (await response.body()).decode(), re.M))
    assert {name for name in shown if not name.endswith("_created")} == known_metrics()


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dashboard = json.loads(printed(capsys, "grafana"))
    rules = yaml.safe_load(printed(capsys, "alerts"))["groups"][0]["rules"]
    asked = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    asked += [rule["expr"] for rule in rules]
    found = {re.sub(r"_(bucket|sum|count)$", "", m) for e in asked for m in re.findall(r"mux_[a-z_]+", e)}
    assert found <= known_metrics()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for expression in asked:
        assert expression.count("(") == expression.count(")")
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
