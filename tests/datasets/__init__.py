"""Tests of the scripts in datasets/, which is a folder and no package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).resolve().parents[2] / "datasets"


def load_script(name: str) -> ModuleType:
    """Import `datasets/<name>.py`."""
    spec = importlib.util.spec_from_file_location(f"datasets_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
