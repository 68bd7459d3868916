"""The README's snippets run: what a newcomer copies works."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

import lit_papers
from lit_papers.cli import main
from lit_papers.diagnose.command import diagnose_parser
from lit_papers.reproduce.claims import find_claims
from lit_papers.reproduce.command import parser as reproduce_parser
from lit_papers.tuning.command import sweep_parser
from lit_papers.tuning.sweep_file import find_sweep, read_sweep

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
SHELL = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
OUR_COMMANDS = [line.rpartition("python -m lit_papers ")[2] for line in SHELL if "python -m lit_papers" in line]
SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]


@pytest.mark.parametrize("command", OUR_COMMANDS)
def test_commands_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = shlex.split(command)
    if arguments[0] == "sweep":  # many runs; tests/tuning starts them
        read_sweep(find_sweep(sweep_parser().parse_args(arguments[1:]).sweep))
        return
    if arguments[0] == "reproduce" and "--list" not in arguments:  # likewise; tests/reproduce
        find_claims(reproduce_parser().parse_args(arguments[1:]).claims)
        return
    if arguments[0] == "diagnose":  # of a run that is not there; tests/diagnose makes pages
        given, others = diagnose_parser().parse_known_args(arguments[1:])
        assert (len(given.ckpt_path), others[0]) == (1, "--config")
        return
    try:
        status = main(arguments + (SHORT if arguments[0] == "fit" else []))
    except SystemExit as end:  # --print_config
        status = int(end.code or 0)
    assert status == 0


def test_python_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    snippets = [block for language, block in BLOCKS if language == "python" and not block.startswith("   ")]
    assert len(snippets) == 4
    shared: dict[str, object] = {"__name__": "readme"}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), shared)  # noqa: S102  # the last goes on with the loader before it
    before, after = map(float, re.search(r"NC1 ([\d.]+) -> ([\d.]+)", capsys.readouterr().out).groups())
    assert after < before
    assert Path("collapse.png").is_file()


def test_ci_runs_the_test_command() -> None:
    command = next(line for line in SHELL if " && pytest" in line)
    install, test = command.split(" && ")
    ci = (ROOT / ".ci/run").read_text()
    assert test in [line.strip() for line in ci.splitlines()]
    assert install.removeprefix("pip install ") in ci


def test_the_slurm_recipe_starts_searches_of_one_study() -> None:
    block = next(block for language, block in BLOCKS if language == "bash" and "#SBATCH" in block)
    shebang, options, command = block.splitlines()
    assert shebang == "#!/bin/bash"
    assert all(re.fullmatch(r"--[a-z-]+=[\w:]+", word) for word in options.split()[1:])
    launcher, _, arguments = command.partition(" python -m lit_papers sweep ")
    given = sweep_parser().parse_args(shlex.split(arguments))
    assert launcher == "srun"
    assert given.trials
    assert given.storage.startswith("postgresql://")
    read_sweep(find_sweep(given.sweep))


def test_every_paper_is_cited() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    addresses = {entry["url"] for entry in citation["references"]}
    for readme in (ROOT / "lit_papers").glob("*/README.md"):
        assert re.search(r"https://arxiv.org/abs/[\d.]+", readme.read_text())[0] in addresses, readme
    assert len(addresses) == 7
    assert citation["version"] == lit_papers.__version__


def test_sweeps_are_there() -> None:
    for line in SHELL:
        if line.startswith("wandb sweep"):
            assert "command" in yaml.safe_load((ROOT / line.split()[2]).read_text())


def test_links_and_pictures_are_there() -> None:
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_every_paper_with_code_is_in_the_table() -> None:
    for folder in (ROOT / "lit_papers").iterdir():
        if (folder / "module.py").is_file():
            assert re.search(rf"`lit_papers.{folder.name}`\]\(lit_papers/{folder.name}/README.md\) \| ready", README)
