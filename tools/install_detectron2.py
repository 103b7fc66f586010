#!/usr/bin/env python3
"""The same as `dformer install-detectron2`; it runs before dformer is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dformer.apps.install_detectron2 import main  # noqa: E402

if __name__ == "__main__":
    main()
