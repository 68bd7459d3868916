"""The sweep files: what an agent would run is a command line that parses, with the values of the sweep."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import lit_papers
from lit_papers.cli import main

SWEEPS = Path(lit_papers.__file__).parent.parent / "sweeps"


def value_at(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("name", ["local_sgd", "local_sgd_grid"])
def test_an_agent_can_start_every_run(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])
    sweep = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
    chosen = {key: p["values"][-1] if "values" in p else p["max"] for key, p in sweep["parameters"].items()}
    Path("arguments.json").write_text(json.dumps(chosen))
    words = [word.replace("${args_json_file}", "arguments.json") for word in sweep["command"]]
    assert words[:4] == ["${env}", "${interpreter}", "-m", "lit_papers"]
    with pytest.raises(SystemExit, match="0"):
        main([*words[4:], "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert {key: value_at(config, key) for key in chosen} == chosen
    assert config["trainer"]["strategy"]["class_path"] == "lit_papers.local_sgd.LocalSGDStrategy"
