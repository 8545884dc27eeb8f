"""One bug put into one module, in a process of its own, and the tests that should find it."""

import gc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).parents[2]
_HEAVY = [
    *(
        "torch",
        "transformers",
        "peft",
        "opacus",
        "datasets",
        "sklearn.model_selection",
        "scipy.stats",
    ),
    *("dp_accounting.rdp", "dp_accounting.pld.privacy_loss_distribution", "mpmath", "pydantic"),
    *("flwr.app", "flwr.clientapp", "flwr.serverapp", "ruamel.yaml", "pytest_cov.plugin"),
    *("cryptography.hazmat.primitives.ciphers.aead", "pytest", "hypothesis.strategies"),
    *("hypothesis.internal.conjecture.engine", "xdist.plugin"),
]  # all but fedtune's own: a fork has them at once
_SIDES = ("", "server", "client", "simulations")


@dataclass(frozen=True)
class Mutation:
    """A bug: in `file`, `before` becomes `after`. `tests` are those that must go red.

    `seen_in` names where the bug was met: a project's issue, a paper, or privacy folklore.
    """

    name: str
    seen_in: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from other source text than its file's."""

    def __init__(self, name: str, path: Path, text: str) -> None:
        super().__init__(name, str(path))
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._text, self.path, "exec", dont_inherit=True)
        return code


class _Finder(MetaPathFinder):
    """Finds one module, patched."""

    def __init__(self, name: str, path: Path, text: str) -> None:
        self._name, self._path, self._text = name, path, text

    def find_spec(self, fullname: str, path: object, target: object = None) -> object:
        if fullname != self._name:
            return None
        loader = _Loader(fullname, self._path, self._text)
        return importlib.util.spec_from_file_location(fullname, self._path, loader=loader)


def outcome(mutation: Mutation) -> tuple[int, str]:
    """Pytest's exit code and output for `mutation.tests` with the bug in place."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(mutation, sender))
    process.start()
    sender.close()
    try:
        told: tuple[int, str] = receiver.recv()
    except EOFError:
        told = -1, "the process died"
    process.join()
    return told


def _run(mutation: Mutation, sender: Connection) -> None:
    gc.freeze()  # a search for garbage would go through, and so copy, all that was forked
    out = os.memfd_create("output")
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(ROOT)
    path = ROOT / mutation.file
    sys.meta_path.insert(0, _Finder(_module(mutation.file), path, mutated(mutation)))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-p", "pytest_timeout", *mutation.tests]
    code = int(pytest.main(arguments))
    sys.stdout.flush()
    os.lseek(out, 0, os.SEEK_SET)
    with os.fdopen(os.dup(out), "r", errors="replace") as written:
        sender.send((code, written.read()))
    os._exit(0)  # what the libraries do at an end takes seconds, and there is nothing to tidy


def mutated(mutation: Mutation) -> str:
    """The file's text with the bug. Raises ValueError unless the place is there once."""
    text = (ROOT / mutation.file).read_text()
    if text.count(mutation.before) != 1:
        raise ValueError(
            f"{mutation.name}: {text.count(mutation.before)} places in {mutation.file} to patch"
        )
    return text.replace(mutation.before, mutation.after)


def _module(file: str) -> str:
    parts: Sequence[str] = Path(file).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] in _SIDES else parts)
