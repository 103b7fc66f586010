#!/usr/bin/env python3
"""The same as `dformer visualize-diffusion`."""

from dformer.apps.commands.visualize_diffusion import main

if __name__ == "__main__":
    main()
