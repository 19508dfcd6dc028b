#!/usr/bin/env python
"""Run `bioptimus app`, from a checkout or as a Hugging Face Space; see its --help and README.md."""

from bioptimus_hf.cli.__main__ import entry

if __name__ == "__main__":
    entry("app")
