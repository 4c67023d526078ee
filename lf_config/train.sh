#!/usr/bin/env bash
# What ToolACE/train.sh and Reranker/train.sh share.
# Usage: train.sh CONFIG.yaml LOKI_MODEL_DIR OUTPUT_DIR [key=value ...]
set -euo pipefail
config=$(realpath "$1")
shift
own=$(dirname "$config")/train.sh
if [ $# -lt 2 ]; then
    echo "usage: $own LOKI_MODEL_DIR OUTPUT_DIR [key=value ...]" >&2
    exit 2
fi
if [ ! -f "$1/config.json" ]; then
    echo "$own: $1 is no model directory: make one with 'loki create MODEL --positions POS.json --output $1'" >&2
    exit 2
fi
model=$(realpath "$1")
output=$(realpath -m "$2")
shift 2
cd "$(dirname "$config")"
exec llamafactory-cli train "$(basename "$config")" "model_name_or_path=$model" "output_dir=$output" "$@"
