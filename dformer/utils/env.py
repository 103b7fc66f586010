"""The environment: installed versions, the state of a git checkout, the CPU."""

import importlib.util
import platform
import re
import subprocess
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dformer.utils.version import PACKAGE, __version__

# Distribution -> its module, which another distribution may provide, too (opencv-python, a checkout, ...).
REQUIRED = {name: name for name in ("torch", "torchvision", "timm", "numpy", "scipy")}
REQUIRED |= {"pillow": "PIL", "opencv-python-headless": "cv2", "pycocotools": "pycocotools", "fvcore": "fvcore"}
REQUIRED |= {"panopticapi-lite": "panopticapi", "detectron2": "detectron2"}


def installed(name: str) -> str | None:
    """Return the version of the distribution `name`; None if neither it nor its module is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "version unknown" if importlib.util.find_spec(REQUIRED[name]) else None


def versions() -> dict[str, str | None]:
    """Return the versions of dformer and all that it needs."""
    return {"dformer": __version__} | {name: installed(name) for name in REQUIRED}


def git_state() -> dict[str, str]:
    """Return the commit of the checkout that dformer runs from and `git status`; empty without a checkout or git."""
    folder = PACKAGE.parent
    if not (folder / ".git").exists():
        return {}
    questions = {"commit": ("rev-parse", "HEAD"), "status": ("status", "--short")}
    run = partial(subprocess.run, capture_output=True, text=True, timeout=10, check=True)
    try:
        return {key: run(["git", "-C", folder, *words]).stdout.strip() for key, words in questions.items()}
    except (OSError, subprocess.SubprocessError):
        return {}


def cpu_model() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
