#!/usr/bin/env bash
# Measure on a GPU machine, with what `make gpu-pack` packed: bash benchmarks/gpu/run.sh correctness|speed|evidence
# Options go to the part's program: `--seconds 500`, its time, and `--tiny`, to try it on a CPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
part=${1:?name a part: correctness, speed or evidence}
shift
python=${PYTHON:-python3} packed=${GPU_PACK:-$PWD/build/gpu}
if [ -d "$packed/wheels" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  # A folder on the path, as a virtual environment would not see the packages of one that it was made in.
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$packed"/wheels/*.whl
  export PYTHONPATH="$PWD:$site:$packed/metadata${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -d "$packed/data" ]; then
  export MUST_DATA=${MUST_DATA:-$packed/data}
fi
PYTHONUNBUFFERED=1 "$python" -m "benchmarks.gpu.$part" "$@"
