"""An agent from a Python file: one value named ``agent``.

Files are loaded by path as modules of a synthetic package, one package per folder. The folder never gets onto
``sys.path`` and the name ``agents`` is never imported for it: the OpenAI Agents SDK has a package of that
name, and ``from agents import Agent`` in a roster file must find it. ``from . import helper`` works.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mux.adapters import adapt
from mux.agent import Agent, FunctionAgent
from mux.errors import ConfigError, MuxError
from mux.roster.markdown import NAME
from mux.tools.base import Tool

__all__ = ["forget", "read_python"]


def _package(folder: Path) -> str:
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]
    return f"mux_roster_{digest}"


def _ensure_package(folder: Path) -> str:
    name = _package(folder)
    if name not in sys.modules:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


def forget(folder: Path) -> None:
    """Drop the folder's modules, so that changed files, and what they import of it, are read again."""
    name = _package(folder)
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]


def read_python(path: Path) -> tuple[Agent | None, list[Tool]]:
    """The agent of a file (``None`` if it only defines tools), and the tools that it defines.

    Raises:
        ConfigError: ``agent_invalid``: it fails, or has neither; the message is the reason alone.
    """
    module = _execute(path)
    tools = [
        replace(value, source=str(path)) if value.source == module.__name__ else value
        for value in vars(module).values()
        if isinstance(value, Tool)
    ]
    value = getattr(module, "agent", None)
    if value is None or isinstance(value, ModuleType) or _is_decorator(value):
        if not tools:
            raise _invalid("it has no value named 'agent'")
        return None, tools
    return _checked(value), tools


def _is_decorator(value: Any) -> bool:
    """Whether ``agent`` is our own decorator, imported by that name in a file that only defines tools."""
    return getattr(value, "__module__", "") == "mux.agent" and not hasattr(value, "run")


def _execute(path: Path) -> ModuleType:
    name = f"{_ensure_package(path.parent)}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _invalid("Python can't load it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations and dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except MuxError as e:
        del sys.modules[name]
        raise _invalid(e.message) from e
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise _invalid(_failure(e, path)) from e
    return module


def _failure(error: BaseException, path: Path) -> str:
    """What failed, and the line of the file that did it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"line {frames[-1].lineno}: " if frames else ""
    return f"{where}{type(error).__name__}: {error}"


def _checked(value: Any) -> Agent:
    try:
        agent = adapt(value)
    except (MuxError, ImportError) as e:  # an adapter whose framework is missing or of another version
        raise _invalid(str(e)) from e
    name, run = getattr(agent, "name", None), getattr(agent, "run", None)
    if isinstance(agent, type) or not isinstance(name, str) or not callable(run):
        raise _invalid(
            f"its value 'agent' is of type {type(value).__name__}, not an agent: use mux.LlmAgent,"
            " @mux.agent, or an object with name, description and run(ctx)"
        )
    if inspect.iscoroutinefunction(agent.function if isinstance(agent, FunctionAgent) else run):
        raise _invalid(
            "its agent is an async function that yields nothing: let it yield what it says, such as"
            " yield mux.Token(content='…')"
        )
    if not NAME.fullmatch(name):
        raise _invalid(f"its name {name!r} may have only letters, digits and . _ - (64 at most)")
    if not isinstance(getattr(agent, "description", None), str):
        raise _invalid("its agent has no description")
    checked: Agent = agent
    return checked


def _invalid(reason: str) -> ConfigError:
    return ConfigError("agent_invalid", reason)
