#!/usr/bin/env bash
# Usage: ./train.sh [LOKI_MODEL_DIR [OUTPUT_DIR [key=value ...]]]    (any key of toolace.yaml, which names the defaults)
here=$(dirname "$0")
exec "$here/../train.sh" "$here/toolace.yaml" "$@"
