"""The agents there are, by name; read again when a file changes."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import structlog

from mux.agent import Agent, Budget, tool_names
from mux.errors import ConfigError, NotFound
from mux.guardrails import Rules
from mux.llm.agent import LlmAgent, is_pattern
from mux.llm.setup import LlmRuntime
from mux.roster.markdown import check_name, read_markdown
from mux.roster.python import forget, read_python
from mux.tools.base import Tool
from mux.tools.mcp_link import mcp_problem
from mux.workspaces import workspaces_of

__all__ = ["PLAIN", "Problem", "Roster"]

_log = structlog.get_logger()
PLAIN = "~model"  # the agent that is a model alone; no file can define an agent of that name
_IGNORED = {"readme.md", "changelog.md", "license.md", "contributing.md"}
_NO_AGENTS = {
    "node_modules",
    "site-packages",
    "venv",
}  # folders that hold other people's files by the thousand
_DEPTH = 6  # sub-folders below a roster's folder


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that could not be loaded.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(slots=True)
class _Loaded:
    """One state of the roster, replaced as a whole when files change."""

    agents: dict[str, Agent] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    tools: dict[str, Tool] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Roster:
    """Loads agents from folders.

    Args:
        dirs: folders in order of precedence: ``./agents``, then every ``--agents DIR``.
        runtime: what LLM agents run on; roster tools are added to its toolbox.
        builtin: the folder of the built-in agents; it comes last.
    """

    def __init__(self, dirs: Sequence[Path], runtime: LlmRuntime, *, builtin: Path) -> None:
        self._dirs = [*dict.fromkeys(Path(d).resolve() for d in dirs), builtin.resolve()]
        self._dirs = list(dict.fromkeys(self._dirs))
        self._builtin = builtin.resolve()
        self._asked = {Path(d).resolve() for d in dirs}
        self._runtime = runtime
        self._plain = LlmAgent(name=PLAIN, description="A model alone, without instructions or tools.").bind(
            runtime
        )
        self._state = _Loaded()
        self._seen: dict[Path, tuple[int, int]] = {}
        self._workspaces = workspaces_of(runtime.settings)
        self._lock = threading.Lock()  # refresh runs in threads

    @property
    def agents(self) -> Mapping[str, Agent]:
        """All agents by name."""
        return self._state.agents

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools that roster files define, by name."""
        return self._state.tools

    @property
    def problems(self) -> list[Problem]:
        """Files that could not be loaded."""
        return list(self._state.problems)

    @property
    def warnings(self) -> list[str]:
        """What was left out of agents that run all the same."""
        return list(self._state.warnings)

    def get(self, name: str) -> Agent:
        """An agent; `PLAIN` is one that is in no list.

        Raises:
            NotFound: ``agent_unknown``, with near names.
        """
        if name == PLAIN:
            return self._plain
        agent = self._state.agents.get(name)
        if agent is None:
            near = difflib.get_close_matches(name, self._state.agents, n=3)
            known = ", ".join(near or sorted(self._state.agents)) or "none"
            lead = "Did you mean" if near else "Known agents"
            raise NotFound("agent_unknown", f"There is no agent {name[:64]!r}. {lead}: {known}.")
        return agent

    # --- loading -----------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read every file. A file that fails is a problem and stops no other."""
        with self._lock:
            self._seen = self._scan()
            self._load()

    def refresh(self) -> bool:
        """Read the files again if any was added, changed or removed. Running channels keep their agents.

        Returns:
            Whether anything changed. Touches the disk: call it in a thread.
        """
        with self._lock:
            seen = self._scan()
            if seen == self._seen:
                return False
            self._seen = seen
            self._load()
        return True

    def _scan(self) -> dict[Path, tuple[int, int]]:
        seen: dict[Path, tuple[int, int]] = {}
        for path in self._files():
            try:
                stat = path.stat()
            except OSError:  # removed since it was listed: the next look will not list it
                continue
            seen[path] = (stat.st_mtime_ns, stat.st_size)
        return seen

    def _files(self) -> Iterator[Path]:
        for folder in self._dirs:
            for base, below, names in os.walk(folder):  # a folder that can't be read: `load` says which
                here = Path(base)
                deep = len(here.relative_to(folder).parts) >= _DEPTH
                below[:] = (
                    []
                    if deep
                    else sorted(n for n in below if not n.startswith(("_", ".")) and n not in _NO_AGENTS)
                )
                for name in sorted(names):
                    hidden = name.startswith(("_", ".")) or name.lower() in _IGNORED
                    path = here / name
                    if path.suffix in (".md", ".py") and not hidden and path.is_file():
                        yield path

    def _folder_of(self, path: Path) -> Path:
        """The roster's folder in which a file lies, however deep."""
        return next(d for d in (path, *path.parents) if d in self._dirs)

    def _load(self) -> None:
        state = _Loaded()
        for folder in self._dirs:
            forget(folder)
            if folder in self._asked and not os.path.isdir(folder) and folder != Path.cwd() / "agents":
                state.problems.append(Problem(folder, "there is no such folder"))
            elif os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                state.problems.append(Problem(folder, "this folder may not be read"))
        found: list[tuple[Agent, Path]] = []
        for path in self._files():
            try:
                found.extend((agent, path) for agent in self._read(path, state))
            except ConfigError as e:
                state.problems.append(Problem(path, e.message))
            except Exception as e:  # noqa: BLE001 -- one file's fault must never be another's
                state.problems.append(Problem(path, f"it can't be loaded: {type(e).__name__}: {e}"))
        named = {agent.name for agent, _ in found}
        found += [pair for pair in self._configured(state) if pair[0].name not in named]
        for agent, path in found:
            try:
                self._admit(agent, path, state)
            except Exception as e:  # noqa: BLE001 -- likewise
                state.problems.append(Problem(path, f"its agent can't be used: {type(e).__name__}: {e}"))
        self._state = state
        _log.info(
            "roster_loaded",
            agents=sorted(state.agents),
            folders=[str(d) for d in self._dirs if os.path.isdir(d)],
            problems=[str(p) for p in state.problems],
            warnings=state.warnings,
        )

    def _read(self, path: Path, state: _Loaded) -> list[Agent]:
        nested = path.parent not in self._dirs
        if path.suffix == ".md":
            if nested and not _has_front_matter(path):
                state.warnings.append(f"{path}: passed over: it has no front matter")
                return []
            agent, warnings = read_markdown(path)
            state.warnings.extend(f"{path}: {w}" for w in warnings)
            return [] if agent is None else [agent]
        if nested:  # perhaps a helper of a file above: running it unasked could do anything
            if not (path.parent / "__init__.py").exists():
                state.warnings.append(f"{path}: passed over: Python files in sub-folders are not loaded")
            return []
        value, tools = read_python(path)
        for tool in tools:
            state.tools.setdefault(tool.name, tool)
        return [] if value is None else [value]

    def _configured(self, state: _Loaded) -> list[tuple[Agent, Path]]:
        """The agents of ``[acp.NAME]``, after those of files."""
        settings = self._runtime.settings
        path = settings.config_path or Path("mux.toml")
        found: list[tuple[Agent, Path]] = []
        for name, program in settings.acp.items():
            try:
                check_name(name)
                from mux.adapters.acp import AcpAgent  # an extra

                agent = AcpAgent(name=name, source=str(path), **program.model_dump())
                found.append((agent, path))
            except ConfigError as e:
                state.problems.append(Problem(path, f"acp.{name}: {e.message}"))
        return found

    def _admit(self, agent: Agent, path: Path, state: _Loaded) -> None:
        earlier = state.sources.get(agent.name)
        if earlier is not None:
            folder = self._folder_of(path)
            if self._folder_of(earlier) == folder:
                reason = f"{earlier.relative_to(folder)} already defines an agent named {agent.name!r}"
                state.problems.append(Problem(path, reason))
            return  # an earlier folder replaces an agent of a later one: that is how one overrides
        if isinstance(agent, LlmAgent):
            agent = self._bound(agent, path, state)
        elif (in_workspaces := getattr(agent, "in_workspaces", None)) is not None:
            agent = in_workspaces(self._workspaces)
        state.warnings.extend(f"{path}: {w}" for w in self._guard_warnings(agent))
        state.agents[agent.name] = agent
        state.sources[agent.name] = path

    def _bound(self, agent: LlmAgent, path: Path, state: _Loaded) -> LlmAgent:
        """The agent on our runtime, with its roster tools in place of their names."""
        builtin = self._runtime.toolbox().tools
        tools: list[Tool | str] = []
        for tool in cast("Sequence[Tool | str]", agent.tools):
            if isinstance(tool, str) and is_pattern(tool):
                tools.extend(state.tools[name] for name in state.tools if fnmatchcase(name, tool))
            elif isinstance(tool, str) and tool not in builtin:
                if tool in state.tools:
                    tools.append(state.tools[tool])
                    continue
                if not self._may_come(tool) and not any(tool.startswith(f"{s}_") for s in agent.mcp):
                    state.warnings.append(f"{path}: unknown tool {tool!r}; the agent runs without it")
            tools.append(tool)
        model = agent.model
        if model is not None:
            model = self._runtime.settings.aliases.get(model, model)
            try:
                self._runtime.providers.model(model)
            except ConfigError:
                state.warnings.append(
                    f"{path}: unknown model {agent.model!r}; the agent runs on the default model"
                )
        for server, config in agent.mcp.items():
            if problem := mcp_problem(config):
                state.warnings.append(f"{path}: MCP server {server!r}: {problem}; the agent runs without it")
        bound = LlmAgent(
            **{**_fields(agent), "model": model, "tools": tuple(tools), "source": agent.source or str(path)}
        )
        return bound.bind(self._runtime)

    def _guard_warnings(self, agent: Agent) -> list[str]:
        """What is to be said of the agent's own guardrails. One that can't be used fails its channels: who
        asks for a guardrail must not run without it."""
        own = getattr(agent, "guardrails", None)
        if not own:
            return []
        settings = self._runtime.settings
        base = settings.config_path.parent if settings.config_path else None
        try:
            rules = Rules.compile(settings.guardrails, base=base)
            known = len(rules.warnings)
            return rules.with_agent(own).warnings[known:]
        except ConfigError as e:
            return [f"{e.message} The agent's channels fail until this is mended."]

    def _may_come(self, tool: str) -> bool:
        """Whether a tool belongs to a configured MCP server, which may not be connected yet."""
        settings = self._runtime.settings
        return any(tool.startswith(f"{server}_") for server in settings.mcp) or (
            tool == "web_search" and not settings.web_search.url and not settings.web_search.mcp
        )

    # --- for people --------------------------------------------------------------------------------------

    def describe(self) -> list[dict[str, Any]]:
        """The agents as ``GET /api/agents`` shows them, own ones first."""
        found: list[dict[str, Any]] = []
        for name, agent in self._state.agents.items():
            try:
                found.append(self._described(name, agent))
            except Exception as e:  # noqa: BLE001 -- an attribute that fails is this agent's alone
                _log.warning("agent_not_described", agent=name, error=f"{type(e).__name__}: {e}")
                source = str(self._state.sources[name])
                found.append({"name": name, "description": "", "tools": [], "source": source})
        return found

    def _described(self, name: str, agent: Agent) -> dict[str, Any]:
        path = self._state.sources[name]
        tools = tool_names(agent)
        known = {*self._runtime.toolbox().tools, *self._state.tools}
        described: dict[str, Any] = {
            "name": name,
            "description": agent.description,
            "model": self._model_of(agent),
            "tools": [t for t in tools if not isinstance(agent, LlmAgent) or t in known or _own(agent, t)],
            "source": "built-in" if path.parent == self._builtin else str(path),
        }
        if isinstance(agent, LlmAgent) and agent.mcp:
            described["mcp"] = sorted(agent.mcp)
        budget = getattr(agent, "budget", None)
        if isinstance(budget, Budget):
            described["budget"] = budget.model_dump(exclude_none=True)
        examples = getattr(agent, "examples", ())
        if isinstance(examples, list | tuple) and examples:
            described["examples"] = [str(example) for example in examples]
        if title := getattr(agent, "title", None):
            described["title"] = str(title)
        return {k: v for k, v in described.items() if v is not None}

    def _model_of(self, agent: Agent) -> str | None:
        model = getattr(agent, "model", None)
        if not isinstance(agent, LlmAgent):
            return model if isinstance(model, str) else None
        if agent.model is not None:
            try:
                self._runtime.providers.model(agent.model)
            except ConfigError:
                return self._runtime.settings.default_model()
            return agent.model
        return self._runtime.settings.default_model()


def _has_front_matter(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.readline(16).rstrip() == "---"
    except OSError:
        return False


def _own(agent: LlmAgent, name: str) -> bool:
    return any(isinstance(t, Tool) and t.name == name for t in agent.tools)


def _fields(agent: LlmAgent) -> dict[str, Any]:
    return {name: getattr(agent, name) for name in LlmAgent.__dataclass_fields__}
