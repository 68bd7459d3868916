"""The process of one run, started by the command with a folder.

The folder's ``request.json`` says what to do: to resolve what several runs are made of, to train by a configuration, or
to call a function. The processes that a strategy starts enter here too.
"""

import importlib
import io
import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from lit_papers.files import write_whole
from lit_papers.reproduce.plan import TRAINING
from lit_papers.trials.runs import REQUEST, write_answer


def main(folder: Path) -> int:
    """Do what the folder asks for; the exit status is that of ``fit``, or 0."""
    request = json.loads((folder / REQUEST).read_text())
    if "resolve" in request:
        write_answer(folder, {"resolved": [_resolve(each, folder) for each in request["resolve"]]})
        return 0
    if "call" in request:
        function = import_function(request["call"])
        before = cpu_seconds()
        values = function(seed=request["seed"], **request["set"])
    else:
        import lit_papers.lightning_cli  # noqa: F401  # whose import is no part of the cost

        before = cpu_seconds()
        status = _fit(request, folder)
        if status or os.environ.get("LOCAL_RANK", "0") != "0":
            return status
        values = {}
    write_answer(folder, {**values, "seconds": round(cpu_seconds() - before, 2)})
    return 0


def cpu_seconds() -> float:
    """Seconds of all cores that this process has used, with processes it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def import_function(path: str) -> Callable[..., Any]:
    """The function of a dotted path.

    Raises:
        ValueError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"{path}: there is no such function: {error}") from error
    return function


def _words(request: Mapping[str, Any], folder: Path, **more: Any) -> list[str]:
    """The command line of a training; a file of values keeps types that words would lose."""
    values = folder / "values.json"
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the other ranks read what the first has written
        write_whole(values, json.dumps({**request["set"], **more}))
    return ["fit", *(word for name in request["configs"] for word in ("--config", name)), "--config", str(values)]


def _fit(request: Mapping[str, Any], folder: Path) -> int:
    from lit_papers import cli

    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder), "name": "", "version": TRAINING},
    }
    expanded = json.loads(os.path.expandvars(json.dumps(request["set"])))
    seeds = dict.fromkeys(request["seeded"], request["seed"])
    words = _words({**request, "set": expanded}, folder, **seeds)
    return cli.main([*words, f"--trainer.logger={json.dumps(logger)}", "--trainer.enable_progress_bar=false"])


def _resolve(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What runs of one arm are made of, with every default; or the error that the first of them would end with."""
    if "call" in request:
        import inspect

        try:
            bound = inspect.signature(import_function(request["call"])).bind(seed=0, **request["set"])
        except (ValueError, TypeError) as error:
            return {"error": f"{request['call']}: {error}"}
        bound.apply_defaults()
        return {"arguments": {key: value for key, value in bound.arguments.items() if key != "seed"}}
    import yaml

    from lit_papers import cli

    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = cli.main([*_words(request, folder), "--trainer.logger=null", "--print_config"])
    except SystemExit as end:
        status = int(end.code or 0)
    if status:
        return {"error": err.getvalue().strip() or out.getvalue().strip()}
    return {"configuration": yaml.safe_load(out.getvalue())}


if __name__ == "__main__":  # in the further processes of a strategy, which end with the first
    status = main(Path(sys.argv[1]))
    sys.exit(status)  # looked up now, as in `lit_papers.__main__`
