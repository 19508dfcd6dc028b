#!/usr/bin/env bash
# The whole pipeline on the embedded sample, on a CPU, without a network: corpus -> vocabulary -> contexts -> v0.0 ->
# v0.1 ... v0.4 -> a NER head -> the entities of a sentence. `make demo` runs it; other options go to every stage, for
# example: scripts/demo.sh --base_model google-bert/bert-base-uncased
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
if [[ " $* " != *" --base_model "* ]]; then
    set -- --base_model "$("$python" scripts/embedded_model.py)" "$@"
    export HF_HUB_OFFLINE=1
fi
recipe=(--recipe scripts/recipes/demo.yaml)
started=$SECONDS
"$python" scripts/train_vocabulary.py "${recipe[@]}" "$@"
"$python" scripts/find_contexts.py "${recipe[@]}" "$@"
"$python" scripts/distill_embeddings.py "${recipe[@]}" "$@"
"$python" scripts/pretrain.py "${recipe[@]}"
"$python" scripts/finetune_ner.py "${recipe[@]}" "$@"
"$python" scripts/report.py --output_dir runs/demo \
    --text "Methacholine provoked severe bronchoconstriction in children with asthma who had received aspirin."
echo "Done in $((SECONDS - started)) s. Everything is in runs/demo; run it again and every finished stage is skipped."
