"""The built-in tools together, on real documents, with a real sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mux.settings import Documents, Settings, WebSearch
from mux.tools import ToolResources, builtin_tools
from tests.support.tools import call, collect

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
async def resources(tmp_path: Path) -> AsyncIterator[ToolResources]:
    (tmp_path / "harbour.md").write_text("# The harbour\n\nThe lighthouse is 31 metres high.\n")
    resources = ToolResources(Settings(documents=Documents(roots=(tmp_path,))))
    yield resources
    await resources.aclose()


async def test_each_built_in_tool_does_real_work(resources: ToolResources) -> None:
    box = resources.toolbox()
    result = await call(box.tools["calculator"], expression="2 ** 10 + 1")
    assert result.output == "1025"
    progress, result = await collect(box.tools["search_docs"], query="lighthouse")
    assert progress
    assert "31 metres" in result.output
    assert result.data["sources"] == [{"n": 1, "title": "The harbour", "path": "harbour.md"}]
    progress, result = await collect(box.tools["run_python"], code="print('hi')\n6 * 7")
    assert result.output == "hi\n42\n"
    assert "".join(p.content or "" for p in progress) == result.output
    result = await call(box.tools["read_doc"], path="1")
    assert "31 metres" in result.output


async def test_without_configured_roots_the_manual_is_the_document_folder() -> None:
    resources = ToolResources(Settings())
    try:
        listed = await call(resources.toolbox().tools["list_docs"])
        assert "index.md" in {d["path"] for d in listed.data["documents"]}
    finally:
        await resources.aclose()
        await resources.aclose()


def test_web_search_is_offered_only_where_it_is_configured() -> None:
    without = {t.name for t in builtin_tools(Settings())}
    configured = Settings(web_search=WebSearch(url="http://127.0.0.1:1/search"))
    assert {t.name for t in builtin_tools(configured)} - without == {"web_search"}
    assert without == {
        "ask_channels",
        "calculator",
        "delegate",
        "fetch_url",
        "list_docs",
        "read_doc",
        "run_python",
        "search_docs",
    }


def test_every_built_in_tool_describes_itself_and_its_arguments() -> None:
    for tool in builtin_tools(Settings()):
        assert len(tool.description) > 30
        assert tool.source == "built-in"
        for name, schema in tool.parameters["properties"].items():
            assert schema.get("description"), f"{tool.name}({name})"
