#!/usr/bin/env python3
"""The same as `dformer replay`."""

from dformer.apps.commands.replay import main

if __name__ == "__main__":
    main()
