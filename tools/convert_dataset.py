#!/usr/bin/env python3
"""The same as `dformer convert-dataset`."""

from dformer.apps.convert_dataset import main

if __name__ == "__main__":
    main()
