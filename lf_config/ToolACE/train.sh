#!/usr/bin/env bash
# Usage: ./train.sh LOKI_MODEL_DIR OUTPUT_DIR [key=value ...]    (any key of toolace.yaml; both directories may be relative)
here=$(dirname "$0")
exec "$here/../train.sh" "$here/toolace.yaml" "$@"
