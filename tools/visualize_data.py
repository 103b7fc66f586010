#!/usr/bin/env python3
"""The same as `dformer visualize-data`."""

from dformer.apps.commands.visualize_data import main

if __name__ == "__main__":
    main()
