#!/usr/bin/env python
"""Run `bioptimus pretrain` from a checkout; see its --help."""

from bioptimus_hf.cli.__main__ import entry

if __name__ == "__main__":
    entry("pretrain")
