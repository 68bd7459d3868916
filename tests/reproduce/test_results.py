"""Numbers in READMEs are those of the results; a changed one is found, and so are results of an earlier claim."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lit_papers import catalog
from lit_papers.reproduce import measured, tables
from lit_papers.reproduce.claims import ClaimError, find_claims, papers
from lit_papers.reproduce.measured import Measured, measured_path
from lit_papers.reproduce.results import Results, is_old, kept, verdict_of
from lit_papers.reproduce.verdicts import Outcome

ROOT = Path(__file__).parents[2]
CLAIMS = find_claims([])


@pytest.mark.parametrize("path", tables.readmes(), ids=lambda path: path.parent.name)
def test_tables_are_those_of_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.rewritten(text) == text, "run `python -m lit_papers reproduce --write`"


def test_every_paper_has_its_table() -> None:
    assert tables.missing_blocks({path: path.read_text(encoding="utf-8") for path in tables.readmes()[1:]}) == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.path)
def test_results_belong_to_the_claim_as_it_is(claim) -> None:
    results = kept(claim)
    if results is None:
        assert claim.needs_in_words(), "a claim that runs here has results"
        return
    assert not is_old(claim, results), f"run `python -m lit_papers reproduce {claim.path} --write`"
    ran = {(outcome.arm, outcome.seed) for outcome in results.outcomes}
    assert ran == {(arm, seed) for arm in claim.plan.arms for seed in claim.plan.seeds}
    assert verdict_of(claim, results).because
    for key in (*claim.show, *claim.cost):
        assert key == "seconds" or all(key in outcome.values for outcome in results.outcomes), key


def test_no_results_without_a_claim() -> None:
    known = {(claim.paper, claim.name) for claim in CLAIMS}
    files = {(path.parents[1].name, path.stem) for path in (ROOT / "lit_papers").glob("*/results/*.json")}
    assert files <= known


def test_every_measured_table_is_shown() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in tables.readmes())
    for path in (ROOT / "lit_papers").glob("*/results/measured/*.json"):
        assert f"<!-- measured: {path.parents[2].name}/{path.stem} -->" in texts


def test_a_kill_in_the_middle_of_writing_leaves_the_results_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "score.json"
    before = Results((Outcome("", 0, {"score": 1.0}, {}, 1.0),), "", {}, "", "", "")
    before.write(path)

    def written_by_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", written_by_half)
    with pytest.raises(KeyboardInterrupt):
        Results((Outcome("", 0, {"score": 2.0}, {}, 1.0),), "", {}, "", "", "").write(path)
    assert Results.read(path) == before


def test_a_measured_table_goes_to_a_file_and_into_a_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "ROOMS", tmp_path)
    rows = {"ours": {"time [s]": 0.123456, "beside it": 1.0}, "a|b": {"time [s]": 12}}
    Measured.of(rows, "pytest", {}).write(measured_path("paper/table"))
    text = "<!-- measured: paper/table -->\n1\n<!-- /measured -->\n"
    written = tables.rewritten(text)
    assert "| ours | .123 | 1 |\n| a\\|b | 12 |  |\n" in written
    assert tables.rewritten(written.replace(".123", ".124")) == written
    with pytest.raises(ClaimError, match="no measured table 'paper/other'"):
        tables.rewritten(text.replace("table", "other"))
    measured_path("paper/table").write_text('{"row": {}}')
    with pytest.raises(ValueError, match=r"table.json holds no measured table"):
        tables.rewritten(text)


def test_a_changed_number_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = papers()[0]
    text = f"# A paper\n<!-- reproduce: {paper} -->\n<!-- /reproduce -->\n"
    written = tables.rewritten(text)
    assert CLAIMS[0].statement in written
    assert tables.rewritten(written) == written
    digit = next(character for character in written if character.isdigit() and character != "7")
    assert tables.rewritten(written.replace(digit, "7", 1)) == written


def test_results_go_to_a_file_and_back(tmp_path: Path) -> None:
    outcome = Outcome("a", 0, {"x": 1 / 3, "list": [1.0, 2e-30]}, {"k": "v"}, 1.25)
    results = Results.of(CLAIMS[0], [outcome], {"torch": "2"})
    results.write(tmp_path / "a/b.json")
    back = Results.read(tmp_path / "a/b.json")
    assert back.outcomes == (Outcome("a", 0, {"x": 0.333333, "list": [1.0, 2e-30]}, {"k": "v"}, 1.25),)
    assert back.asked == CLAIMS[0].asked()
    (tmp_path / "damaged.json").write_text(json.dumps({"runs": [{}]}))
    with pytest.raises(ValueError, match=r"damaged.json holds no results"):
        Results.read(tmp_path / "damaged.json")


def test_a_changed_configuration_makes_results_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (claim,) = find_claims(["neural_collapse/emergence"])
    results = Results.of(claim, [], {})
    shutil.copytree(catalog.CONFIG_FOLDER / "neural_collapse", tmp_path / "neural_collapse")
    monkeypatch.setattr(catalog, "CONFIG_FOLDER", tmp_path)
    path = tmp_path / f"{claim.plan.configs[0]}.yaml"
    text = path.read_text()
    path.write_text("# paper: a comment is no value\n" + text)
    assert not is_old(claim, results)
    path.write_text(text.replace("weight_decay: 5", "weight_decay: 6"))
    assert is_old(claim, results)
