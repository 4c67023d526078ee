#!/usr/bin/env bash
# What ToolACE/train.sh and Reranker/train.sh share.
# Usage: train.sh CONFIG.yaml [LOKI_MODEL_DIR [OUTPUT_DIR [key=value ...]]]    (default: what the configuration names)
set -euo pipefail
config=$(realpath "$1")
shift
folder=$(dirname "$config")
own=$folder/train.sh

# A directory that the configuration names, relative to its own folder.
named() {
    (cd "$folder" && realpath -m "$(sed -n "s/^$1: *\([^ #]*\).*/\1/p" "$config")")
}

model=$(if [ $# -ge 1 ]; then realpath -m "$1"; else named model_name_or_path; fi)
output=$(if [ $# -ge 2 ]; then realpath -m "$2"; else named output_dir; fi)
shift $(($# < 2 ? $# : 2))
if [ ! -f "$model/config.json" ]; then
    echo "$own: $model is no model directory: make one with 'loki create MODEL --positions POS.json --output $model'" >&2
    exit 2
fi
cd "$folder"
exec llamafactory-cli train "$(basename "$config")" "model_name_or_path=$model" "output_dir=$output" "$@"
