#!/usr/bin/env bash
# What to run where there is a GPU, ten minutes at most: benchmarks/gpu_all.sh [LOG]
#
# Tests, the five notebooks on the demo (without ablations), new images, the search, and a ViT-L/14.
# Each step has its own time limit, and one that fails does not stop the next. The log goes to
# output/gpu.log or to LOG; its last lines say what passed. PYTHON chooses the interpreter.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
log="${1:-output/gpu.log}"
python="${PYTHON:-python3}"
export PYTHON="$python" SKIP_INSTALL=1
summary=()

step() { # LIMIT NAME COMMAND...: run it for LIMIT seconds at most, and note how it ended
  local limit="$1" name="$2" start=$SECONDS status=0
  shift 2
  printf '\n=== %s: %s\n' "$name" "$*"
  timeout "$limit" "$@" || status=$?
  summary+=("$(printf '%-16s exit status %3d %5d s' "$name" "$status" $((SECONDS - start)))")
}

main() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  step 120 tests "$python" -m pytest tests/test_gpu.py -q
  step 280 notebooks ./run_all.sh --set output_dir=output/gpu \
    --set 02_train_model_a.ablation_epochs=0 --set 03_cuml_knn_model_b.ablation=false
  step 40 predict ./run_all.sh predict --output output/gpu --images input/demo/test/images \
    --out output/gpu/new.parquet
  step 60 search "$python" benchmarks/gpu.py search --repeats 2
  step 60 "ViT-L training" "$python" benchmarks/gpu_model.py train --batches 12 --repeats 2
  step 40 "ViT-L encoding" "$python" benchmarks/gpu_model.py encode --batches 12 --repeats 2
  printf '\n'
  printf '%s\n' "${summary[@]}"
}

mkdir -p "$(dirname "$log")"
main 2>&1 | tee "$log"
