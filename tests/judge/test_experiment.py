"""Files of experiments."""

from __future__ import annotations

from pathlib import Path

import pytest

from mux.errors import BadRequest
from mux.judge.experiment import read_experiment

PROMPTFOO = """
description: capitals
prompts: ["What is the capital of {{country}}?"]
providers: ["openai:chat:gpt-x", {id: "ollama:chat:small", label: "my small"}]
defaultTest: {assert: [{type: latency, threshold: 5000}]}
tests:
  - vars: {country: France}
    assert: [{type: icontains, value: paris}, {type: not-contains, value: London}]
"""


def written(folder: Path, text: str, **files: bytes) -> Path:
    for name, data in files.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    (folder / "e.yaml").write_text(text)
    return folder / "e.yaml"


def test_a_file_of_promptfoos_shape_is_read(tmp_path: Path) -> None:
    experiment = read_experiment(written(tmp_path, PROMPTFOO))
    assert [(lane.id, lane.model) for lane in experiment.lanes] == [
        ("openai-gpt-x", "openai:gpt-x"), ("my-small", "ollama:small"),
    ]  # fmt: skip
    assert experiment.cases[0].prompt == "What is the capital of France?"
    assert [c.type for c in experiment.cases[0].checks] == ["latency", "icontains", "not-contains"]


def test_everything_that_is_not_supported_is_named_at_once(tmp_path: Path) -> None:
    text = (
        PROMPTFOO
        + "  - {vars: {country: Peru}, assert: [{type: similar, value: Lima}], options: {}}\nscenarios: []\n"
    )
    with pytest.raises(BadRequest) as caught:
        read_experiment(written(tmp_path, text))
    assert caught.value.code == "experiment_unsupported"
    assert all(name in caught.value.message for name in ("'similar'", "'options'", "'scenarios'"))


def test_tests_come_from_csv_with_a_mark_and_from_jsonl_whose_lines_end_with_lf_alone(tmp_path: Path) -> None:
    base = "prompts: ['{{q}}']\nlanes: [{id: a}]\ntests: "
    csv = "\ufeffq,__expected\r\nhé?,contains: é\r\n".encode()
    case = read_experiment(written(tmp_path, base + "t.csv", t_csv=csv)).cases[0]
    assert (case.prompt, case.checks[0].type, case.checks[0].value) == ("hé?", "contains", "é")
    lines = '{"vars": {"q": "a\u2028b"}}\n{"vars": {"q": "c"}}\n'.encode()
    cases = read_experiment(written(tmp_path, base + "t.jsonl", t_jsonl=lines)).cases
    assert [c.prompt for c in cases] == ["a\u2028b", "c"]


def test_a_variable_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="'country'"):
        read_experiment(written(tmp_path, "prompts: ['{{country}}']\nlanes: [{id: a}]"))
