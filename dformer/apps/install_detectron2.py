"""Install Detectron2 into the current environment, unless there is one already.

Detectron2 is not on PyPI under its own name. `detectron2-cdo` there is the source release of 0.5 without the C++ files,
which pip can neither build nor read the metadata of. So its source archive is fetched from the index that pip is
configured for, patched for today's Python, NumPy and Pillow, and installed as a pure Python wheel, without the version
pins of 2021: `dformer` depends on what it imports. Its compiled operators (rotated boxes, deformable convolution, the
fast COCO evaluation) are absent; dformer uses none of them.

panopticapi, with which Detectron2 and dformer measure PQ, is also installed if it is missing, without its pin to
NumPy 1, which has no build for Python 3.13 and which it does not need.

    dformer install-detectron2                    # into the environment of this python
    dformer install-detectron2 --wheel-dir DIR    # only build the wheel there, for another installer

Needs the standard library and `unearth` only: tools/install_detectron2.py runs it before dformer itself is installed.
"""

import argparse
import ast
import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dformer.utils.errors import UserError, exit_on_user_error

SOURCE = "detectron2-cdo==0.5"
SOURCE_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
PANOPTICAPI = "panopticapi-lite==0.2.0"
VERSION = "0.5+dformer.1"  # the number after "dformer" grows with every change of the patches below
DIST_INFO = f"detectron2-{VERSION}.dist-info"

# Packages of the wheel and their folders in the source archive, as its setup.py has them.
PACKAGES = {
    "detectron2": "detectron2",
    "detectron2/projects/point_rend": "projects/PointRend/point_rend",
    "detectron2/projects/deeplab": "projects/DeepLab/deeplab",
    "detectron2/projects/panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

# Aliases that NumPy 1.24 and Pillow 10 removed, and what they stood for.
REMOVED_ALIASES = [
    (re.compile(r"\b(?:np|numpy)\.(bool|int|float|complex|object|str)\b"), r"\1"),
    (re.compile(r"\bImage\.LINEAR\b"), "Image.BILINEAR"),
    (re.compile(r"\bImage\.CUBIC\b"), "Image.BICUBIC"),
    (re.compile(r"\bImage\.ANTIALIAS\b"), "Image.LANCZOS"),
]

# What else broke since: file in the wheel -> (text, its replacement).
REPAIRS = {
    # NumPy 2 reads `copy=False` as "never copy" and refuses an image.
    "detectron2/layers/mask_ops.py": ("np.array(mask, copy=False)", "np.asarray(mask)"),
    # PyTorch no longer ships Caffe2, and the rest of `detectron2.export` (and so the FLOP counter) does without.
    "detectron2/export/__init__.py": ("from .api import *\n", ""),
}

# Replaces the compiled module, from which the log of the set-up reads these three.
COMPILED_MODULE = '''\
"""Stands in for Detectron2's compiled operators, which this pure Python build does not have."""


def get_compiler_version():
    return "none: pure Python build by dformer"


def get_cuda_version():
    return "none: pure Python build by dformer"


def has_cuda():
    return False


def __getattr__(name):
    raise AttributeError(
        f"detectron2._C.{name} is a compiled operator, and this Detectron2 is a pure Python build without them; "
        "build Detectron2 from its own repository where you need it"
    )
'''


def say(message: str) -> None:
    print(f"install_detectron2: {message}", flush=True)


# The environment


def existing_detectron2() -> str | None:
    """Return version and folder of the Detectron2 that `import detectron2` finds; None if there is no usable one.

    Only an installation of ours can be unusable (interrupted, or with older patches); any other is the user's.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None or unfit_installations():  # no origin: a folder that was left empty
        return None
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return f"{version} in {Path(spec.origin).parent}"


def unfit_installations() -> list[importlib.metadata.Distribution]:
    """List installations of ours that were interrupted or that have older patches."""
    return [
        distribution
        for distribution in importlib.metadata.distributions(name="detectron2")
        if "+dformer" in (distribution.version or "")
        and not (distribution.version == VERSION and is_complete(distribution))
    ]


def is_complete(distribution: importlib.metadata.Distribution) -> bool:
    """Check that every file in the distribution's RECORD is on disk with its recorded size."""
    # Read here, since `distribution.files` leaves out missing files from Python 3.12 on.
    rows = [row for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()) if row]
    paths = [(Path(str(distribution.locate_file(name))), size) for name, _, size in rows]
    return bool(paths) and all(path.is_file() and size in ("", str(path.stat().st_size)) for path, size in paths)


def remove_unfit_installations() -> None:
    """Remove these, their metadata last, so that a run after an interruption finds them again."""
    for distribution in unfit_installations():
        site_packages = Path(str(distribution.locate_file("")))
        say(f"removing the interrupted or outdated Detectron2 {distribution.version} from {site_packages}")
        shutil.rmtree(site_packages / "detectron2", ignore_errors=True)
        shutil.rmtree(site_packages / f"detectron2-{distribution.version}.dist-info")


# Fetching


def pip_config() -> dict[str, list[str]]:
    """Return pip's settings for installing (from pip.conf and PIP_* variables), key -> values."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if listed.returncode != 0:
        raise UserError(
            f"pip does not run in this environment ({sys.executable}): {listed.stderr.strip()}. "
            f"Install it (`{sys.executable} -m ensurepip`), or use --wheel-dir with a Python that has it."
        )
    return parse_pip_config(listed.stdout)


def parse_pip_config(listing: str) -> dict[str, list[str]]:
    """Parse the output of `pip config list`: variables override [install], which overrides [global]."""
    sections: dict[str, dict[str, list[str]]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        name, separator, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if separator and section in sections:
            sections[section][key] = str(ast.literal_eval(value)).split()
    return {key: values for section in sections.values() for key, values in section.items()}


def locations(config: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Return the index URLs and find-links URLs that pip would search."""

    def url(place: str) -> str:
        return place if "://" in place or place.startswith("file:") else Path(place).expanduser().resolve().as_uri()

    indexes = config.get("index-url", ["https://pypi.org/simple"]) + config.get("extra-index-url", [])
    if config.get("no-index", ["false"])[0].lower() in ("1", "true", "yes", "on"):
        indexes = []
    return [url(place) for place in indexes], [url(place) for place in config.get("find-links", [])]


def client_options(config: dict[str, list[str]]) -> dict[str, Any]:
    """Convert pip's settings to options of unearth's HTTP client."""
    options: dict[str, Any] = {"follow_redirects": True, "trusted_hosts": config.get("trusted-host", [])}
    if "cert" in config or "client-cert" in config:
        certificates = config.get("cert", [None])[0]
        if certificates and not Path(certificates).exists():
            raise UserError(f"pip's `cert` setting names {certificates}, which does not exist.")
        context = ssl.create_default_context(cafile=certificates)
        if "client-cert" in config:
            context.load_cert_chain(config["client-cert"][0])
        options["verify"] = context
    if "proxy" in config:
        options["proxy"] = config["proxy"][0]
    if seconds := config.get("timeout", config.get("default-timeout")):
        options["timeout"] = float(seconds[0])
    return options


def fetch_source(folder: Path) -> Path:
    """Fetch the source archive, check its hash and unpack it, unbuilt, under `folder`; returns the unpacked tree."""
    try:
        from httpx2 import HTTPError  # what unearth fetches with
        from unearth import PackageFinder
        from unearth.auth import MultiDomainBasicAuth
        from unearth.errors import UnpackError
        from unearth.fetchers.sync import PyPIClient
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed, and fetching Detectron2 needs it: {sys.executable} -m pip install unearth"
        ) from error

    config = pip_config()
    indexes, find_links = locations(config)
    where = ", ".join(re.sub(r"//[^/@]*@", "//", place) for place in indexes + find_links)
    remedy = (
        "Check the network and pip's index settings (`pip config list`, PIP_INDEX_URL), or install a Detectron2 of "
        "your own; then run this again."
    )
    if not where:
        raise UserError(f"pip is set to search no index and no folder, so {SOURCE} cannot be fetched. {remedy}")
    say(f"fetching {SOURCE} from {where}")
    hashes = {"sha256": [SOURCE_SHA256]}
    try:
        with PyPIClient(**client_options(config)) as session:
            session.auth = MultiDomainBasicAuth(index_urls=indexes)
            finder = PackageFinder(session, index_urls=indexes, find_links=find_links, no_binary=["detectron2-cdo"])
            best = finder.find_best_match(SOURCE, hashes=hashes).best
            if best is None:
                raise UserError(f"{SOURCE} (sha256 {SOURCE_SHA256}) was not found at {where}. {remedy}")
            return Path(finder.download_and_unpack(best.link, folder, hashes=hashes))
    except (HTTPError, OSError, UnpackError) as error:
        raise UserError(f"{SOURCE} could not be fetched from {where}: {error}. {remedy}") from error


# Building


def patch_source(name: str, text: str) -> str:
    """Return the source text of the file `name` of the wheel, patched."""
    for pattern, replacement in REMOVED_ALIASES:
        text = pattern.sub(replacement, text)
    if name in REPAIRS:
        broken, repaired = REPAIRS[name]
        if broken not in text:
            raise RuntimeError(f"{name} does not hold {broken!r}: the patches do not fit this source")
        text = text.replace(broken, repaired)
    return text


def wheel_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the wheel's files; metadata first, so that it identifies a broken installation."""
    metadata = f"Metadata-Version: 2.1\nName: detectron2\nVersion: {VERSION}\nLicense: Apache-2.0\n"
    metadata += "Summary: Detectron2 0.5 as a pure Python package, for today's Python, NumPy and Pillow\n"
    yield f"{DIST_INFO}/METADATA", metadata.encode()
    yield f"{DIST_INFO}/WHEEL", b"Wheel-Version: 1.0\nGenerator: dformer\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    yield f"{DIST_INFO}/LICENSE", (source / "LICENSE").read_bytes()
    yield "detectron2/_C.py", COMPILED_MODULE.encode()
    for package, folder in PACKAGES.items():
        for path in sorted((source / folder).rglob("*")):
            name = f"{package}/{path.relative_to(source / folder).as_posix()}"
            if path.suffix == ".py":
                yield name, patch_source(name, path.read_text("utf-8")).encode()
            elif path.suffix == ".yaml":  # the model zoo's configs
                yield name, path.read_bytes()


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of the unpacked source archive in `folder`, which appears there only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    files = dict(wheel_files(source))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        draft = Path(scratch) / wheel.name
        rows = []
        for name, content in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append((name, f"sha256={digest}", len(content)))
        record = Path(scratch) / "RECORD"
        with record.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([*rows, (f"{DIST_INFO}/RECORD", "", "")])
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(record, f"{DIST_INFO}/RECORD")
            for name, content in files.items():
                archive.writestr(name, content)
        os.replace(draft, wheel)
    return wheel


def fetch_and_build(folder: Path) -> Path:
    """Fetch the source and build its wheel in `folder`."""
    with tempfile.TemporaryDirectory(prefix="dformer-detectron2-") as scratch:
        source = fetch_source(Path(scratch))
        say("building a pure Python wheel of it")
        return build_wheel(source, folder)


# Installing


def pip_install(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode != 0:
        raise UserError(f"pip could not install {arguments[-1]}; its own message above says why.")


def install_detectron2() -> None:
    if existing := existing_detectron2():
        say(f"Detectron2 {existing} is installed already and is kept")
        return
    with tempfile.TemporaryDirectory(prefix="dformer-detectron2-") as scratch:
        wheel = fetch_and_build(Path(scratch))
        remove_unfit_installations()
        pip_install("--no-index", str(wheel))
    importlib.invalidate_caches()
    say(f"installed Detectron2 {existing_detectron2()}")


def install_panopticapi() -> None:
    interrupted = not all(map(is_complete, importlib.metadata.distributions(name="panopticapi-lite")))
    if importlib.util.find_spec("panopticapi") is None or interrupted:
        say(f"installing {PANOPTICAPI}")
        pip_install("--force-reinstall", PANOPTICAPI)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], epilog="An existing Detectron2 is left alone."
    )
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="only build the wheel, into DIR")
    options = parser.parse_args(arguments)
    if options.wheel_dir is not None:
        say(f"built {fetch_and_build(options.wheel_dir)}")
    else:
        install_detectron2()
        install_panopticapi()
