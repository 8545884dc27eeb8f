"""What the packages import is what pyproject.toml asks for, not what came along with it."""

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def imported() -> Iterator[str]:
    for folder in ("fedtune", "server", "client", "simulations"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                yield from (name.partition(".")[0] for name in names)


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    owners = importlib.metadata.packages_distributions()
    others = {name for name in imported() if not name.startswith("fedtune")}
    for name in sorted(others - sys.stdlib_module_names):
        assert declared & {canonicalize_name(owner) for owner in owners[name]}, name
