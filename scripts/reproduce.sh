#!/usr/bin/env bash
# A run on real data, for the figures of benchmarks/RESULTS.md. Options as for run.sh:
#     bash scripts/reproduce.sh biomedical_20mb
# BIOPTIMUS_DATA (default ../shared/data, from the root of the checkout) names the folder that contains
# corpus/abstracts.txt.gz and ner/, see docs/data.md.
set -euo pipefail
name=${1:?name a recipe: biomedical_20mb or biomedical_100mb}
shift
root=$(cd "$(dirname "$0")/.." && pwd)
data=$(cd "${BIOPTIMUS_DATA:-$root/../shared/data}" && pwd)
exec bash "$root/scripts/run.sh" "$name" --corpus "$data/corpus/abstracts.txt.gz" --ner_data "$data/ner" "$@"
