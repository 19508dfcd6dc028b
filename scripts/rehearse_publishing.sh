#!/usr/bin/env bash
# Publish the run of the demo to a Hub on loopback, and load a version back from there; needs no network and no token.
#     bash scripts/rehearse_publishing.sh runs/demo [--base_model_id NAME]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
output=${1:?name the folder of a run}
shift
scratch=$(mktemp -d)
"$python" -m tests.hub --folder "$scratch/hub" > "$scratch/address" &
hub=$!
trap 'kill "$hub"; wait "$hub" 2> /dev/null || true; rm -rf "$scratch"' EXIT
until [[ -s $scratch/address ]]; do
    kill -0 "$hub"
    sleep 0.1
done
source "$scratch/address"  # HF_ENDPOINT, HF_TOKEN, and an HF_HOME of its own
export HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_PROGRESS_BARS=1
echo "Publishing to a Hub on loopback, $HF_ENDPOINT:"
"$python" -m bioptimus_hf.cli publish --recipe bioptimus_hf/recipes/demo.yaml --output_dir "$output" "$@" \
    --repo_id me/encoder --push
"$python" - << 'CODE'
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

model = AutoModelForMaskedLM.from_pretrained("me/encoder", revision="v0.2")
fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained("me/encoder", revision="v0.2"))
best = fill("Aspirin provoked severe [MASK].")[0]["token_str"]
print(f"me/encoder v0.2, loaded from that Hub: Aspirin provoked severe [{best}].")
CODE
