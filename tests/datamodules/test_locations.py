import subprocess
import sys
from pathlib import Path

import pytest

import lit_papers
from lit_papers.locations import LAYOUTS, MissingDataError, find_data, is_present, search_places


def touch(folder: Path, name: str, ending: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in LAYOUTS[name].files:
        (folder / (file + ending)).touch()
    return folder


def test_places_are_root_then_environment_then_system(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_PAPERS_DATA", str(tmp_path / "env"))
    system = LAYOUTS["FashionMNIST"].system
    assert search_places("FashionMNIST", tmp_path) == [tmp_path, tmp_path / "env", system]
    assert search_places("FashionMNIST", tmp_path / "env") == [tmp_path / "env", system]
    assert search_places("CIFAR10") == [tmp_path / "env"]


def test_the_first_place_that_has_the_data_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_PAPERS_DATA", str(tmp_path / "env"))
    found = touch(LAYOUTS["FashionMNIST"].system, "FashionMNIST", ".gz")
    assert find_data("FashionMNIST", tmp_path / "root") == found
    found = touch(tmp_path / "env", "FashionMNIST")
    assert find_data("FashionMNIST", tmp_path / "root") == found
    found = touch(tmp_path / "root", "FashionMNIST")
    assert find_data("FashionMNIST", tmp_path / "root") == found


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_accepted_folder_is_found(name, tmp_path):
    for i, below in enumerate(LAYOUTS[name].folders):
        folder = touch(tmp_path / str(i) / below, name)
        assert find_data(name, tmp_path / str(i)) == folder


def test_an_empty_variable_is_no_place(monkeypatch):
    monkeypatch.setenv("LIT_PAPERS_DATA", "")
    with pytest.raises(MissingDataError, match="neither `root` nor \\$LIT_PAPERS_DATA is set"):
        find_data("CIFAR10")


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = touch(tmp_path / "here", "SVHN")
    assert find_data("SVHN", "~/here") == folder


def test_an_incomplete_folder_is_missing_and_says_what_it_lacks(tmp_path):
    (touch(tmp_path, "STL10") / "test_y.bin").unlink()
    with pytest.raises(MissingDataError, match=r"\(lacks test_y.bin\)"):
        find_data("STL10", tmp_path)


def test_the_error_names_the_places_the_files_and_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_PAPERS_DATA", "/somewhere/else")
    with pytest.raises(MissingDataError) as error:
        find_data("FashionMNIST", tmp_path)
    system = str(LAYOUTS["FashionMNIST"].system)
    for said in (
        "FashionMNIST was not found",
        f"{tmp_path}/FashionMNIST/raw\n",
        "/somewhere/else\n",
        system,
        "train-images-idx3-ubyte",
        "--data.root",
        "$LIT_PAPERS_DATA",
        "--data.download=true",
        "apt install dataset-fashion-mnist",
    ):
        assert said in str(error.value)
    with pytest.raises(MissingDataError) as error:
        find_data("MNIST", tmp_path)
    assert "apt" not in str(error.value)
    assert issubclass(MissingDataError, FileNotFoundError)


def test_presence(tmp_path):
    assert is_present("Digits") is True
    assert is_present("somebody.elses.Data") is None
    assert is_present("lit_papers.datamodules.CIFAR100", tmp_path) is False
    touch(tmp_path, "CIFAR100")
    assert is_present("lit_papers.datamodules.CIFAR100", tmp_path) is True
    assert is_present("ImageFolder", tmp_path) is True
    assert is_present("ImageFolder") is False


def test_nothing_heavy_is_imported():
    program = (
        "import sys, lit_papers.locations as l; l.is_present('Digits');"
        "print([name for name in ('torch', 'sklearn') if name in sys.modules])"
    )
    root = Path(lit_papers.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_data_made_by_the_model_are_always_here():
    assert is_present("lit_papers.datamodules.Components") is True
