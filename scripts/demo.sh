#!/usr/bin/env bash
# The whole pipeline on the embedded sample, on a CPU, without a network; `make demo` runs it. Options as for run.sh:
#     bash scripts/demo.sh --base_model google-bert/bert-base-uncased --output_dir runs/demo-bert
exec bash "$(dirname "$0")/run.sh" demo "$@"
