"""What the user can mend is one clear line and status 2; a bug keeps its traceback, with file and line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_papers
from lit_papers.cli import main
from lit_papers.extras import install_command
from lit_papers.mistakes import mistake
from tests.processes import started

ROOT = Path(lit_papers.__file__).parents[1]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.max_epochs=1"]


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])  # LightningCLI warns of two command lines


def outcome(arguments: list[str]) -> int:
    """Exit status, whether returned or raised."""
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


def one(**callback: Any) -> str:
    return json.dumps({"trainer": {"callbacks": [{"class_path": "lit_papers.callbacks.NeuralCollapse", **callback}]}})


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Files that are not what they should be."""
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "open.yaml").write_text("trainer: {max_epochs: [1\n")
    (tmp_path / "list.yaml").write_text("- trainer\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "twice.yaml").write_text("trainer:\n  max_epochs: 1\n  max_epochs: 2\n")
    (tmp_path / "typo.yaml").write_text("trainer: {max_epoch: 1}\n")
    (tmp_path / "garbage.ckpt").write_bytes(b"hello")
    (tmp_path / "short.ckpt").write_bytes(b"PK\3\4" + bytes(40))
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "no_dict.ckpt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "sweep.yaml").write_text("method: grid\nmethod: random\n")
    return tmp_path


NC, SGD, CONVEX, STRIDE = "neural_collapse/digits", "local_sgd/digits", "convex_relu/toy", "diffstride/digits"
# (configuration, words, what the line must say)
FUZZ: list[tuple[str, list[str], str]] = [
    # misspellings
    (NC, ["--trainer.max_epoch=3"], "did you mean 'trainer.max_epochs'"),
    (NC, ["--seed_everythin=3"], "did you mean 'seed_everything'"),
    (NC, ["--modle.lr=1"], "did you mean 'model"),
    (NC, ["--model.weight_deca=1"], "did you mean 'weight_decay'"),
    (NC, ["--data.batchsize=1"], "did you mean 'batch_size'"),
    (NC, ["--data.zzz=1"], "its arguments are batch_size"),
    (NC, ["--data=Digts"], "did you mean 'Digits'"),
    (NC, ["--model=ImageClasifier"], "did you mean 'ImageClassifier'"),
    (NC, ["--model=lit_papers.neural_collapse.ImageClasifier"], "did you mean 'ImageClassifier'"),
    (NC, ["--model=lit_papers.neural_colapse.ImageClassifier"], "neural_colapse"),
    (NC, ["--model=no_such_package.Net"], "no module 'no_such_package'"),
    (NC, ["--model.network=rsnet"], "choose one of mlp"),
    (NC, ["--trainer.callbacks+=NeuralColapse"], "did you mean 'NeuralCollapse'"),
    (NC, ["--trainer.callbacks+=NeuralCollapse", "--trainer.callbacks.epoch=1"], "did you mean 'epochs'"),
    (NC, ["--config", one(init_args={"epoch": 2})], "did you mean 'epochs'"),
    (NC, ["--config", one(init_arg={"epochs": [1]})], "unknown key 'init_arg'"),
    (NC, ["--config", json.dumps({"trainer": {"callbacks": [{"class_pat": "x"}]}})], "did you mean 'class_path'"),
    (NC, ["--trainer.logger=CSVLoger"], "did you mean 'CSVLogger'"),
    (NC, ["--trainer.logger=CSVLogger", "--trainer.logger.nme=x"], "did you mean 'name'"),
    (NC, ["--trainer.strategy=nope"], "invalid strategy name"),
    (NC, ["--trainer.accelerator=qpu"], "invalid accelerator name"),
    (NC, ["--trainer.profiler=nope"], "profiler"),
    (NC, ["--trainer.plugins=foo"], "'foo'"),
    (NC, ["--print_confg"], "did you mean 'print_config'"),
    (SGD, ["--trainer.strategy.init_args.sync_evry=3"], "did you mean 'sync_every'"),
    (CONVEX, ["--model.num_neuron=6"], "did you mean 'num_neurons'"),
    (STRIDE, ["--model.network.init_args.strids=[1]"], "strids"),
    # wrong types and values
    (NC, ["--model.lr=abc"], "lr: expected float, got abc"),
    (NC, ["--model.lr=-1"], "lr must be > 0"),
    (NC, ["--model.num_classes=1"], "num_classes must be at least 2"),
    (NC, ["--model.num_classes=5"], "num_classes"),
    (NC, ["--trainer.max_epochs=abc"], "max_epochs: expected int, got abc"),
    (NC, ["--trainer.max_epochs=1.5"], "expected int, got 1.5"),
    (NC, ["--trainer.max_epochs=-5"], "max_epochs"),
    (NC, ["--trainer.max_time=abc"], "duration"),
    (NC, ["--trainer.precision=17"], "'bf16-mixed'"),
    (NC, ["--trainer.devices=0"], "devices"),
    (NC, ["--trainer.devices=abc"], "devices"),
    (NC, ["--trainer.num_nodes=0"], "num_nodes"),
    (NC, ["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches must be at least 1"),
    (NC, ["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch must be at least 1"),
    (NC, ["--trainer.val_check_interval=0"], "val_check_interval must be at least 1"),
    (NC, ["--config", "{trainer: null}"], "trainer is null"),
    (NC, ["--trainer.limit_train_batches=7.5"], "limit_train_batches"),
    (NC, ["--trainer.fast_dev_run=-2"], "fast_dev_run"),
    (NC, ["--seed_everything=-1"], "-1"),
    (NC, ["--seed_everything=abc"], "expected bool or int, got abc"),
    (NC, ["--data.batch_size=0"], "`batch_size` must be at least 1"),
    (NC, ["--data.batch_size=100000"], "choose a smaller `batch_size`"),
    (NC, ["--data.num_workers=-1"], "`num_workers` must be at least 0"),
    (NC, ["--config", one(init_args={"epochs": "often"})], "epochs: expected int or Sequence[int], got often"),
    (NC, ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=nope"], "nope"),
    (SGD, ["--trainer.strategy.init_args.sync_every=abc"], "sync_every: expected int, got abc"),
    # sizes of model and data that do not fit, which torch's operators refuse
    (
        CONVEX,
        ["--model.in_features=5", "--trainer.callbacks=null"],
        "cannot be multiplied (10x3 and 5x50) (in Linear): do the sizes",
    ),
    (STRIDE, ["--model.model.in_channels=3", "--trainer.callbacks=null"], "(in SameConv2d): do the sizes"),
    (
        STRIDE,
        ["--model.model.num_classes=5", "--trainer.callbacks=null"],
        "is out of bounds. (in cross_entropy): do the sizes",
    ),
    (NC, ["--model.input_shape=[-1,8,8]"], "negative dimension"),
    # null where a value belongs
    (NC, ["--model.lr=null"], "lr is null"),
    (NC, ["--model.input_shape=null"], "input_shape is null"),
    (NC, ["--data.batch_size=null"], "batch_size is null"),
    (STRIDE, ["--model.model.num_classes=null"], "num_classes"),
    (STRIDE, ["--model.mixup_alpha=null"], "mixup_alpha is null, but its type is float"),
    ("continual/digits", ["--data.epochs_per_task=null"], "epochs_per_task is null"),
    # a training that diverges
    ("continual/digits", ["--model.lr=1e30", "--trainer.max_epochs=-1"], "try a lower `lr`"),
    # files
    (NC, ["--config", "binary.yaml"], "binary.yaml is no text file"),
    (NC, ["--config", "open.yaml"], "open.yaml is no YAML"),
    (NC, ["--config", "list.yaml"], "a configuration is a mapping"),
    (NC, ["--config", "empty.yaml"], "a configuration is a mapping"),
    (NC, ["--config", "twice.yaml"], "twice.yaml: the key 'max_epochs' stands there twice, in lines 2 and 3"),
    (NC, ["--config", "{trainer: {max_epochs: 1, max_epochs: 2}}"], "stands there twice"),
    (NC, ["--config", "typo.yaml"], "did you mean 'trainer.max_epochs'"),
    (NC, ["--config", "folder"], "this is a folder"),
    (NC, ["--config", "nope.yaml"], "no such file"),
    (NC, ["--config", "neural_colapse/digits"], "did you mean neural_collapse/digits"),
    (NC, ["--ckpt_path=garbage.ckpt"], "garbage.ckpt: this is no checkpoint"),
    (NC, ["--ckpt_path=short.ckpt"], "short.ckpt: this is no checkpoint"),
    (NC, ["--ckpt_path=other.ckpt"], "other.ckpt: this is no checkpoint of a Trainer"),
    (NC, ["--ckpt_path=no_dict.ckpt"], "no_dict.ckpt: this is no checkpoint"),
    (NC, ["--ckpt_path=folder"], "this is a folder"),
    (NC, ["--ckpt_path=nope.ckpt"], "nope.ckpt: no such file"),
    (NC, ["--ckpt_path=best"], "best"),
    (NC, ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=/proc/nowhere"], "/proc/nowhere"),
    ("neural_collapse/cifar10", ["--data.root=nowhere"], "download"),
    ("neural_collapse/image_folder", ["--data.root=text.zip"], "neither a folder nor an intact .zip"),
    ("neural_collapse/image_folder", ["--data.root=folder"], "folder has no images"),
]


@pytest.mark.parametrize(("config", "words", "says"), FUZZ, ids=[" ".join(words)[:60] for _, words, _ in FUZZ])
def test_a_mistake_is_one_clear_line(
    config: str, words: list[str], says: str, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(["fit", "--config", config, *QUIET, *words]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    lines = said[said.index("error: ") :].splitlines()
    assert says in " ".join(lines)
    assert len(lines) <= (12 if "download" in says else 3), "the line, a hint, and where to read on"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["sweep", "sweep.yaml"], "stands there twice"),
        (["sweep", "folder"], "no such file"),
        (["sweep", "binary.yaml"], "no text file"),
        (["list", "--all"], "`list` takes no arguments"),
        (["fitt"], "did you mean 'fit'"),
    ],
)
def test_other_commands_too(command: list[str], says: str, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(command) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


MINE = """\
import torch
from lightning.pytorch import Callback, LightningModule
{top}

class Net(LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        {init}
        self.layer = torch.nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        {step}
        return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr={lr})

class Watch(Callback):
    def __init__(self, epochs: int = 1):
        {watch}
"""
BUGS = {
    "import": ({"top": "import no_such_package"}, 3, ModuleNotFoundError),
    "top": ({"top": "int('ten')"}, 3, ValueError),
    "name": ({"top": "undefined"}, 3, NameError),
    "constructor": ({"init": "int('ten')"}, 8, ValueError),
    "refusal of its own": ({"init": "raise ValueError('too wide')"}, 8, ValueError),
    "attribute": ({"init": "self.nowhere"}, 8, AttributeError),
    "step": ({"step": "{}['a']"}, 12, KeyError),
    "shapes": ({"step": "batch[0] @ torch.ones(3)"}, 12, RuntimeError),
    "optimizer": ({"lr": "-1"}, 16, ValueError),
    "callback": ({"watch": "len(3)"}, 20, TypeError),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_of_ones_own_keeps_its_traceback(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, line, kind = BUGS[bug]
    name = f"mine_{bug.replace(' ', '_')}"
    parts = {"top": "", "init": "pass", "step": "pass", "lr": "0.1", "watch": "pass", **changes}
    (tmp_path / f"{name}.py").write_text(MINE.format(**parts))
    monkeypatch.syspath_prepend(tmp_path)
    words = ["fit", f"--model={name}.Net", "--data=lit_papers.datamodules.Digits", *QUIET, "--trainer.logger=false"]
    with pytest.raises(kind) as caught:
        main([*words, f"--trainer.callbacks+={name}.Watch"])
    where = [(entry.path, entry.lineno + 1) for entry in caught.traceback]
    assert (tmp_path / f"{name}.py", line) in [(Path(path), number) for path, number in where]


def test_bugs_of_ours_keep_it_too() -> None:
    """What comes up in an expression, as against a ``raise``."""
    namespace: dict[str, Any] = {"__name__": "lit_papers.played"}
    exec("def refuses(): raise ValueError('a')\ndef breaks(): int('ten')\ndef lacks(): raise KeyError('b')", namespace)  # noqa: S102
    told = {}
    for name in ("refuses", "breaks", "lacks"):
        with pytest.raises((ValueError, KeyError)) as caught:
            namespace[name]()
        error = caught.value
        error.__traceback__ = error.__traceback__.tb_next  # type: ignore[union-attr]  # this test is nobody's package
        told[name] = mistake(error)
    assert told == {"refuses": "a", "breaks": None, "lacks": None}


def test_a_full_disk_is_no_bug() -> None:
    assert mistake(OSError(28, "No space left on device", "runs/x.ckpt")) == (
        "[Errno 28] No space left on device: 'runs/x.ckpt': make room, or give another folder "
        "(--trainer.default_root_dir)"
    )


HIDE = """\
import importlib.machinery as machinery, importlib.metadata as metadata
hidden = {"scipy", "sklearn", "torch_geometric", "networkx", "torchvision", "torchaudio", "lightly", "cvxpy", "shapiq"}
hidden |= {"clarabel"}
distributions = {"scikit-learn", "torch-geometric", *hidden}
find, named = machinery.PathFinder.find_spec, metadata.Distribution.from_name

@staticmethod  # some ask an instance of the finder
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)

def from_name(name):
    if name.lower() in distributions:
        raise metadata.PackageNotFoundError(name)
    return named(name)

machinery.PathFinder.find_spec, metadata.Distribution.from_name = find_spec, from_name
import sys
from lit_papers.cli import main
for config in sys.argv[1:]:
    words = ["fit", "--config", config, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    sys.argv[1:] = words
    print("##", config, main(words), flush=True)
print(main(["list"]))
"""


def test_without_extras_a_configuration_runs_or_names_one(tmp_path: Path) -> None:
    """Of a core-only installation; `list` says beforehand what is missing."""
    from lit_papers import catalog

    # two processes are test_cli's; these need no files
    alone = [name for name in catalog.config_names() if not name.startswith("local_sgd/")]
    configs = [name for name in alone if name.split("/")[1] in ("digits", "toy", "csl", "adult", "spoken_digits")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "PYTHONWARNINGS": "ignore"}
    with started([sys.executable, "-c", HIDE, *configs], cwd=tmp_path, env=environment) as process:
        said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    before = said.split("## ")
    for i, config in enumerate(configs):
        status = before[i + 1].split()[1]
        needs = catalog.describe(config).needs
        lines = [line for line in before[i].splitlines() if line.startswith("error: ")]
        assert status == ("2" if needs else "0"), said
        assert not needs or any(f"lit-papers[{extra}]" in lines[-1] for extra in needs), lines
        assert not needs or any(install_command(extra) in lines[-1] for extra in needs), lines
    listed = {line.split("│")[1].strip(): line for line in said.splitlines() if line.startswith("│")}
    for name in catalog.config_names():
        for extra in catalog.describe(name).needs:
            assert extra in listed[name], listed[name]
    assert "packages are missing: pip install" in said
