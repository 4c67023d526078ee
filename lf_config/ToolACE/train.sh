#!/usr/bin/env bash
# Usage: ./train.sh LOKI_MODEL_DIR OUTPUT_DIR [key=value ...]    (any key of toolace.yaml; both directories may be relative)
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 LOKI_MODEL_DIR OUTPUT_DIR [key=value ...]" >&2
    exit 2
fi
if [ ! -f "$1/config.json" ]; then
    echo "$0: $1 is no model directory: make one with 'loki create MODEL --positions POS.json --output $1'" >&2
    exit 2
fi
model=$(realpath "$1")
output=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")"
exec llamafactory-cli train toolace.yaml "model_name_or_path=$model" "output_dir=$output" "$@"
