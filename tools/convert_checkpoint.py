#!/usr/bin/env python3
"""The same as `dformer convert`."""

from dformer.apps.convert_checkpoint import main

if __name__ == "__main__":
    main()
