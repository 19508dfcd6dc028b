#!/usr/bin/env bash
# A run on real data, every stage after the other; a relaunch goes on where it was interrupted.
#     bash scripts/reproduce.sh biomedical_20mb [--base_model NAME]
# BIOPTIMUS_DATA (default ../shared/data) holds corpus/abstracts.txt.gz and ner/: see the README, "Real data".
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?name a recipe of scripts/recipes, without .yaml}
shift
python=${PYTHON:-python}
data=${BIOPTIMUS_DATA:-../shared/data}
if [[ " $* " != *" --base_model "* ]]; then
    set -- --base_model "$("$python" scripts/embedded_model.py)" "$@"
fi
run=(--recipe "scripts/recipes/$name.yaml" --output_dir "runs/$name")
corpus=(--corpus "$data/corpus/abstracts.txt.gz")
"$python" scripts/train_vocabulary.py "${run[@]}" "${corpus[@]}" "$@"
"$python" scripts/find_contexts.py "${run[@]}" "${corpus[@]}" "$@"
"$python" scripts/distill_embeddings.py "${run[@]}" "$@"
"$python" scripts/pretrain.py "${run[@]}" "${corpus[@]}"
"$python" scripts/finetune_ner.py "${run[@]}" --ner_data "$data/ner" "$@"
"$python" scripts/report.py --output_dir "runs/$name" \
    --text "Methacholine provoked severe bronchoconstriction in children with asthma who had received aspirin."
