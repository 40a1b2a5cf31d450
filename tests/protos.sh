#!/usr/bin/env bash
# Regenerates services/moonshard/v1 from protos/. With --check: fails when the committed code differs.
set -euo pipefail
cd "$(dirname "$0")/.."
out=services
if [[ "${1:-}" == --check ]]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
python -m grpc_tools.protoc -I protos --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" \
    --mypy_grpc_out="quiet:$out" protos/moonshard/v1/*.proto
if [[ "${1:-}" == --check ]]; then
    diff -r --exclude=__init__.py --exclude=__pycache__ "$out/moonshard/v1" services/moonshard/v1
fi
