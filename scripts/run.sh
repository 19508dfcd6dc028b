#!/usr/bin/env bash
# Run all stages of a recipe from a checkout, on the embedded base model unless another one is named:
#     bash scripts/run.sh NAME [--output_dir FOLDER] [--base_model NAME] [--corpus FILE] [--ner_data FOLDER] [--force]
# NAME is a recipe that comes with the package, or a YAML file. It is `bioptimus run`, see its --help.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
[[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]] && python=$root/.venv/bin/python
: "${1:?name a recipe}"
if [[ " $* " != *" --base_model"* ]]; then
    set -- "$@" --base_model "$("$python" "$root/scripts/embedded_model.py")"
    export HF_HUB_OFFLINE=1
fi
exec "$python" -m bioptimus_hf.cli run "$@"
