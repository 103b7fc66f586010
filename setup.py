"""All else is in pyproject.toml; here the kernels of dformer.ops are compiled, as far as the machine allows."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# By path: where PyTorch is missing, as under build isolation, dformer.ops cannot be imported.
build = runpy.run_path(str(Path(__file__).parent / "dformer" / "ops" / "build.py"))


class BuildWithKernels(build_py):
    """Puts the kernels beside the modules, in place for an editable install. Where that fails, the install goes on.

    A wheel also gets the configs, which a checkout has beside the package (see `dformer.d2.config.files`).
    """

    def run(self) -> None:
        super().run()
        root = Path(__file__).parent
        folder = root if self.editable_mode else Path(self.build_lib)
        if not self.editable_mode:
            shutil.copytree(root / "configs", folder / "dformer" / "configs", dirs_exist_ok=True)
        for told in build["install"](folder / "dformer" / "ops" / build["LIBRARIES"]):
            print(told)


class PlatformWheel(bdist_wheel):
    """Kernels are for a platform, and for any Python."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
