"""Config files: a user's, and those that come with dformer."""

from pathlib import Path

from dformer.utils.errors import UserError, did_you_mean
from dformer.utils.version import PACKAGE

# In a wheel they are inside of the package, in a checkout beside it.
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"


def find_config(name: str) -> str:
    """Return the file of a config: `name`, or where there is no such file, "configs/..." of those with dformer.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return name
    if path.parts[:1] != (CONFIGS.name,):
        raise UserError(f"config file {name} does not exist")
    own = CONFIGS.parent / path
    if not own.is_file():
        known = (str(file.relative_to(CONFIGS.parent)) for file in CONFIGS.rglob("*.yaml"))
        raise UserError(f"config file {name} does not exist, and does not come with dformer{did_you_mean(name, known)}")
    return str(own)
