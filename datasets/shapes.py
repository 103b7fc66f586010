#!/usr/bin/env python3
"""The same as `dformer shapes`."""

from dformer.apps.shapes import main

if __name__ == "__main__":
    main()
