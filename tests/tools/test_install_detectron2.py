"""Detectron2's installer, on a small source archive that the tests write."""

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dformer.apps import install_detectron2 as installer
from dformer.utils.errors import UserError
from tests import ROOT

TRANSFORM = "import numpy as np\nMASK = np.zeros(3, dtype=np.bool)\n"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source archive laid out as the published one, in the only place where pip is configured to look."""
    source = tmp_path / "detectron2_cdo-0.5"
    texts = {
        "LICENSE": "Apache License",
        "PKG-INFO": "Metadata-Version: 2.1\nName: detectron2_cdo\nVersion: 0.5\n",
        "setup.py": "raise SystemExit('must not be run')",
        "detectron2/__init__.py": "__version__ = '0.5'\n",
        "detectron2/data/transform.py": TRANSFORM,
        "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
        "detectron2/notes.txt": "not part of the package",
        **{name: broken for name, (broken, _) in installer.REPAIRS.items()},
        **{f"{folder}/__init__.py": "" for folder in installer.PACKAGES.values() if folder.startswith("projects/")},
    }
    for name, text in texts.items():
        write(source / name, text)
    packages = tmp_path / "packages"
    packages.mkdir()
    archive = packages / "detectron2_cdo-0.5.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, arcname=source.name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    monkeypatch.setattr(installer, "SOURCE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    return archive


def test_the_wheel_holds_the_packages_patched_and_their_configs_and_is_installed(archive: Path, tmp_path: Path) -> None:
    folder, target = tmp_path / "wheels", tmp_path / "site"
    installer.main(["--wheel-dir", str(folder)])
    (file,) = folder.iterdir()  # and nothing half-made beside it
    wheel = zipfile.ZipFile(file)
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {
        "detectron2/_C.py",
        "detectron2/__init__.py",
        "detectron2/data/transform.py",
        "detectron2/model_zoo/configs/Base.yaml",
        "detectron2/projects/deeplab/__init__.py",
        "detectron2/projects/panoptic_deeplab/__init__.py",
        "detectron2/projects/point_rend/__init__.py",
        *installer.REPAIRS,
    }
    assert wheel.read("detectron2/data/transform.py").decode() == TRANSFORM.replace("np.bool", "bool")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, file]
    subprocess.run(pip, check=True)
    script = "from detectron2 import _C, projects; print(_C.get_compiler_version(), _C.get_cuda_version());"
    script += "print(_C.has_cuda()); _C.deform_conv_forward"
    run = subprocess.run([sys.executable, "-S", "-c", script], cwd=target, capture_output=True, text=True)
    assert run.stdout.split()[-1] == "False"
    assert "deform_conv_forward is a compiled operator" in run.stderr


def test_an_archive_of_other_content_is_refused(archive: Path, tmp_path: Path) -> None:
    with archive.open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match="detectron2-cdo==0.5 .*file://"):
        installer.fetch_source(tmp_path / "source")
    assert not (tmp_path / "source").exists()


def test_an_unreachable_index_is_a_clear_error(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://user:secret@127.0.0.1:9/simple"}
    command = [sys.executable, "tools/install_detectron2.py", "--wheel-dir", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: detectron2-cdo==0.5 could not be fetched from http://127.0.0.1:9/simple")
    assert "PIP_INDEX_URL" in run.stderr and "Traceback" not in run.stderr and "secret" not in run.stderr + run.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x.astype(np.bool)", "x.astype(bool)"),
        ("numpy.float(1)", "float(1)"),
        ("np.bool_ np.int64 np.float32 np.object_", "np.bool_ np.int64 np.float32 np.object_"),
        ("interp=Image.LINEAR", "interp=Image.BILINEAR"),
        ("Image.ANTIALIAS, Image.CUBIC", "Image.LANCZOS, Image.BICUBIC"),
        ("Image.BILINEAR Image.LINEARISH", "Image.BILINEAR Image.LINEARISH"),
    ],
)
def test_removed_aliases_are_replaced(old: str, new: str) -> None:
    assert installer.patch_source("detectron2/any.py", old) == new


def test_a_repair_that_does_not_apply_is_an_error() -> None:
    name, (broken, repaired) = next(iter(installer.REPAIRS.items()))
    assert installer.patch_source(name, f"a\n{broken}\n") == f"a\n{repaired}\n"
    with pytest.raises(RuntimeError, match=name):
        installer.patch_source(name, "something else")


def test_settings_override_as_in_pip() -> None:
    listing = """\
:env:.timeout='30'
global.index-url='https://one.example/simple'
global.timeout='60'
install.index-url='https://two.example/simple'
global.extra-index-url='https://three.example/simple\\nhttps://four.example/simple'
download.index-url='https://five.example/simple'
global.find-links='wheels'
"""
    config = installer.parse_pip_config(listing)
    assert config["timeout"] == ["30"]
    indexes, find_links = installer.locations(config)
    assert indexes == [f"https://{n}.example/simple" for n in ("two", "three", "four")]
    assert find_links == [Path("wheels").resolve().as_uri()]
    assert installer.locations({"no-index": ["1"]}) == ([], [])
    assert installer.locations({}) == (["https://pypi.org/simple"], [])


def installed(site: Path, version: str) -> Path:
    """Lay out an installed Detectron2 of `version` in `site`, as pip leaves it; returns one of its modules."""
    write(site / "detectron2" / "__init__.py", "")
    metadata = site / f"detectron2-{version}.dist-info"
    write(metadata / "METADATA", f"Metadata-Version: 2.1\nName: detectron2\nVersion: {version}\n")
    write(metadata / "RECORD", "detectron2/__init__.py,,0\ndetectron2/data.py,,6\n")
    return write(site / "detectron2" / "data.py", "x = 1\n")


def isolated(site: Path, call: str) -> str:
    """What `call` of the installer prints in a Python whose only site-packages is `site`."""
    script = f"from dformer.apps import install_detectron2; print(install_detectron2.{call})"
    command = [sys.executable, "-S", "-c", script]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("version", ["0.6", installer.VERSION])
def test_an_existing_detectron2_stays(tmp_path: Path, version: str) -> None:
    module = installed(tmp_path, version)
    expected = f"{version} in {tmp_path / 'detectron2'}"
    assert isolated(tmp_path, "existing_detectron2()") == expected
    assert f"Detectron2 {expected} is installed already and is kept" in isolated(tmp_path, "install_detectron2()")
    isolated(tmp_path, "remove_unfit_installations()")
    assert module.exists()


def test_a_checkout_on_the_path_is_an_existing_detectron2(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    assert isolated(tmp_path, "existing_detectron2()") == "None"  # an empty folder is none
    (tmp_path / "detectron2" / "__init__.py").touch()
    assert isolated(tmp_path, "existing_detectron2()").startswith("of unknown version in")


@pytest.mark.parametrize("damage", ["missing", "truncated", "older patches"])
def test_an_unfit_installation_of_ours_is_made_anew(tmp_path: Path, damage: str) -> None:
    module = installed(tmp_path, "0.5+dformer.0" if damage == "older patches" else installer.VERSION)
    if damage == "missing":
        module.unlink()
    elif damage == "truncated":
        module.write_text("x")
    assert isolated(tmp_path, "existing_detectron2()") == "None"
    isolated(tmp_path, "remove_unfit_installations()")
    assert not any(tmp_path.iterdir())


def test_an_interrupted_build_leaves_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "wheels"
    monkeypatch.setattr(installer.zipfile.ZipFile, "writestr", interrupt)
    with pytest.raises(SystemExit, match="130"):
        installer.main(["--wheel-dir", str(folder)])
    assert not any(folder.iterdir())
