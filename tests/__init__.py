"""The tests; `ROOT` is the checkout that they test."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent


@cache
def load_script(path: str) -> ModuleType:
    """Return the module of a script, such as "tools/demo.py", imported once under a name of its own.

    Other packages install a top-level `tools` or `datasets`, so a script is found by its path, not by name.
    """
    name = "_script_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses and pickle look for it there
    folder = str((ROOT / path).parent)  # where Python too looks for the modules that a script imports
    with mock.patch.object(sys, "path", [folder, *sys.path]):
        spec.loader.exec_module(module)
    return module


def run_script(path: str, *arguments: object) -> int:
    """Run a script as from the command line, in this process; return its exit status."""
    script = load_script(path)
    with mock.patch.object(sys, "argv", [path, *map(str, arguments)]):
        try:
            script.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0
