#!/usr/bin/env bash
# The whole method on the embedded sample, and a rehearsal of publishing: what was made is published to a Hub on loopback
# and loaded back from there. `make demo` runs it. Options: --output_dir FOLDER, --base_model NAME, --force.
#     bash scripts/demo.sh --base_model google-bert/bert-base-uncased --output_dir runs/demo-bert
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python}
[[ $PYTHON == python && -x .venv/bin/python ]] && PYTHON=.venv/bin/python

output=runs/demo base=(--base_model_id sentence-transformers/all-MiniLM-L6-v2)
given=("$@") model=
while (($#)); do
    case $1 in
        --output_dir=*) output=${1#*=} ;;
        --output_dir) output=${2:?--output_dir needs a value} ;;
        --base_model=*) base=() model=${1#*=} ;;  # the run records the model, if it is a name on the Hub
        --base_model) base=() model=${2:?--base_model needs a value} ;;
    esac
    shift
done
stages=(train-vocabulary find-contexts distill pretrain finetune-ner)
bash scripts/run.sh demo ${given[@]+"${given[@]}"} --stages "${stages[@]}"
if [[ -d $model ]]; then
    echo "Publishing is not rehearsed: the base model is a folder, which a card can't name."
elif "$PYTHON" -c "import starlette, uvicorn, lz4" 2> /dev/null; then
    bash scripts/rehearse_publishing.sh "$output" ${base[@]+"${base[@]}"}
else
    echo "Publishing is not rehearsed: it needs the packages of pip install '.[hub]'."
fi
"$PYTHON" -m bioptimus_hf.cli report --recipe bioptimus_hf/recipes/demo.yaml --output_dir "$output"
