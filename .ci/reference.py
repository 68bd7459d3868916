"""Build the API reference: ``python .ci/reference.py FOLDER``, then open ``FOLDER/index.html``.

Each paper's README is the page of its package. Any warning, and any link or picture that leads nowhere, is a failure.
"""

import ast
import importlib
import os
import pkgutil
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import pdoc

ROOT = Path(__file__).resolve().parents[1]
PAPERS = sorted(path.parent.name for path in (ROOT / "lit_papers").glob("*/README.md"))


def main(target: Path) -> int:
    """Write the pages; the exit status is 1 where a link is broken."""
    package = importlib.import_module("lit_papers")
    _import_everything(package)
    package.__doc__ = _page(ROOT / "README.md", "lit_papers")
    for paper in PAPERS:
        module = importlib.import_module(f"lit_papers.{paper}")
        module.__doc__ = _page(ROOT / "lit_papers" / paper / "README.md", f"lit_papers/{paper}")
    target.mkdir(parents=True, exist_ok=True)
    os.chdir(target)  # beside a folder of the package's name pdoc would ask which is meant
    pdoc.render.configure(docformat="google", math=True, search=False)
    with warnings.catch_warnings(record=True) as caught:  # what others warn of when they are imported is not ours
        warnings.simplefilter("always")
        pdoc.pdoc("lit_papers", output_directory=target)
    for paper in PAPERS:
        for picture in (ROOT / "lit_papers" / paper).glob("*.png"):
            (target / "lit_papers" / paper).mkdir(exist_ok=True)
            shutil.copy(picture, target / "lit_papers" / paper)
    for picture in (ROOT / "sweeps").glob("*.png"):
        (target / "sweeps").mkdir(exist_ok=True)
        shutil.copy(picture, target / "sweeps")
    _mend(target)
    # pdoc finds no source of the fields that a NamedTuple makes, and needs none
    complaints = {str(each.message) for each in caught if "Cannot determine where" not in str(each.message)}
    complaints |= _broken_links(target)
    print("\n".join(sorted(complaints)) or f"{len(list(target.rglob('*.html')))} pages in {target}")
    return 1 if complaints else 0


def _import_everything(package: ModuleType) -> None:
    """Import all modules, then what they import for type checkers only, so that every annotation has a meaning."""
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "lit_papers.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    for module in modules:
        for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec(compile(ast.Module(node.body, []), str(module.__file__), "exec"), module.__dict__)  # noqa: S102


def _page(readme: Path, module: str) -> str:
    """A README as a docstring: its links lead to pages, its pictures to copies beside them."""
    to_top = "../" * module.count("/")

    def link(found: re.Match[str]) -> str:
        path = (readme.parent / found[2].partition("#")[0]).resolve()
        if not path.is_file():  # an address, or code that looks like a link
            return found[0]
        name = path.relative_to(ROOT).as_posix()
        if paper := re.fullmatch(r"(lit_papers/\w+)/README.md", name):
            return f"{found[1]}({to_top}{paper[1]}.html)"
        if name.endswith(".png"):
            return f"{found[1]}({to_top}{name})"
        return found[1][1:-1]  # a file that has no page

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", link, readme.read_text(encoding="utf-8"))


def _mend(target: Path) -> None:
    """Take out links to inherited and private names, which have no entry on the page, and let pictures fit into it."""
    for page in target.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        entries = set(re.findall(r'\bid="([^"]+)"', text))

        def name(found: re.Match[str], entries: set[str] = entries) -> str:
            return found[0] if found[1] in entries else found[2]

        kept = re.sub(r'<a href="#([\w.]+)">(.*?)</a>', name, text)
        kept = kept.replace("</head>", "<style>img { max-width: 100%; }</style></head>").replace("::</p>", ":</p>")
        page.write_text(kept, encoding="utf-8")


def _broken_links(target: Path) -> set[str]:
    pages = {path: path.read_text(encoding="utf-8") for path in target.rglob("*.html")}
    broken = set()
    for page, text in pages.items():
        for kind, address in re.findall(r'\b(href|src)="([^"]+)"', text):
            path, anchor = urldefrag(unquote(address))
            if "://" in address or address.startswith(("data:", "mailto:")):
                continue
            to = (page.parent / path).resolve() if path else page
            is_there = to.exists() and (not anchor or to not in pages or f'id="{anchor}"' in pages[to])
            if not is_there:
                broken.add(f"{page.relative_to(target)}: {kind} {address}")
    return broken


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
