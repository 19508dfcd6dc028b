#!/usr/bin/env bash
# The whole pipeline on the embedded sample, on a CPU, without a network, and then a rehearsal: what it has made is
# published to a Hub on loopback, and loaded back from there. `make demo` runs it. Options as for run.sh:
#     bash scripts/demo.sh --base_model google-bert/bert-base-uncased --output_dir runs/demo-bert
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python

bash scripts/run.sh demo "$@"

output=runs/demo base=(--base_model_id sentence-transformers/all-MiniLM-L6-v2) given=
while (($#)); do
    case $1 in
        --output_dir=*) output=${1#*=} ;;
        --output_dir) output=$2 ;;
        --base_model=*) base=() given=${1#*=} ;;  # which the run records, if it is a name on the Hub
        --base_model) base=() given=$2 ;;
    esac
    shift
done
if [[ -d $given ]]; then
    echo "Publishing is not rehearsed: the base model is a folder, which a card cannot name."
    exit 0
fi
if ! "$python" -c "import starlette, uvicorn, lz4" 2> /dev/null; then
    echo "Publishing is not rehearsed: it takes the packages of pip install '.[test]'."
    exit 0
fi
scratch=$(mktemp -d)
"$python" -m tests.hub --folder "$scratch/hub" > "$scratch/address" &
hub=$!
trap 'kill "$hub"; wait "$hub" 2> /dev/null || true; rm -rf "$scratch"' EXIT
until [[ -s $scratch/address ]]; do
    kill -0 "$hub"
    sleep 0.1
done
source "$scratch/address"  # HF_ENDPOINT and HF_TOKEN
export HF_HOME=$scratch/home HF_HUB_OFFLINE=0 HF_HUB_DISABLE_TELEMETRY=1 NO_PROXY=127.0.0.1,localhost
export HF_HUB_DISABLE_PROGRESS_BARS=1
echo "Publishing to a Hub on loopback, $HF_ENDPOINT:"
"$python" scripts/publish.py --recipe scripts/recipes/demo.yaml --output_dir "$output" ${base[@]+"${base[@]}"} \
    --repo_id demo/encoder --push
"$python" - << 'CODE'
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

model = AutoModelForMaskedLM.from_pretrained("demo/encoder", revision="v0.2")
fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained("demo/encoder", revision="v0.2"))
best = fill("Aspirin provoked severe [MASK].")[0]["token_str"]
print(f"demo/encoder, v0.2, loaded back from there: Aspirin provoked severe [{best}].")
CODE
