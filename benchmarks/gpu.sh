#!/usr/bin/env bash
# One command for a machine with a GPU, also an offline one: builds in place, tests, sanitizes,
# measures; ends with a table, and writes records and logs. Where something is missing it says so by
# name and goes on. Exit code 1 if anything failed.
#
#   benchmarks/gpu.sh [FOLDER]         for the records and logs; default runs/gpu
#
# Needs python3 with torch, numpy, pytest, setuptools, cmake, ninja and pybind11; nvcc; and for the
# sanitizers compute-sanitizer. PYTHON chooses another interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
out=${1:-runs/gpu}
mkdir -p "$out"
export PYTHONPATH=$PWD
started=$SECONDS
summary=()
failed=0

# step NAME SECONDS COMMAND…: runs it with its output in a log, and notes how it ended. Who ends with
# 77 was skipped, for the reason in the log's last line.
step() {
  local name=$1 limit=$2 begun=$SECONDS status
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  case $status in
    0) summary+=("$(printf '%-22s passed   %4d s' "$name" $((SECONDS - begun)))") ;;
    77) skip "$name" "$(tail -n 1 "$out/$name.log")" ;;
    *)
      failed=1
      summary+=("$(printf '%-22s FAILED   %4d s  exit code %d, see %s' \
        "$name" $((SECONDS - begun)) $status "$out/$name.log")")
      tail -n 15 "$out/$name.log" >&2
      ;;
  esac
  return $status
}

skip() { summary+=("$(printf '%-22s skipped          %s' "$1" "$2")"); }

build=build/$($PYTHON -c 'import sys; print(sys.implementation.cache_tag)')
gpu=no
$PYTHON -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null && gpu=yes
[ $gpu = yes ] && export CMAKE_ARGS="${CMAKE_ARGS:-} -DDPCOMM_CUDA_ARCHITECTURES=native"

nvidia-smi >"$out/device.txt" 2>&1 || echo "no nvidia-smi" >"$out/device.txt"
step build 240 $PYTHON setup.py --quiet build_ext --inplace || {
  printf '%s\n' "${summary[@]}"
  exit 1
}
step test-kernels 300 $PYTHON -m pytest -q -m "not slow" tests/simt \
  tests/test_cuda.py tests/test_torch_ops.py

if [ $gpu = no ]; then
  skip sanitizers "no GPU"
elif ! command -v compute-sanitizer >/dev/null; then
  skip sanitizers "compute-sanitizer is not on the PATH"
elif step build-small 120 cmake --build "$build" --target kernels_cuda; then
  for tool in memcheck racecheck initcheck; do
    step $tool 90 compute-sanitizer --tool $tool --error-exitcode 9 \
      "$build/tests/simt/kernels_cuda" gpu
  done
fi

# NCCL's transport over its stand-in, and two ranks over NCCL itself.
step test-nccl 100 $PYTHON -m pytest -q tests/transport/test_nccl.py
step nccl-two-ranks 120 $PYTHON benchmarks/gpu_nccl.py --out "$out/nccl.jsonl"

if [ $gpu = yes ]; then
  step measure 240 $PYTHON benchmarks/gpu_kernels.py --out "$out/kernels.jsonl"
  cat "$out/measure.log" "$out/nccl-two-ranks.log"
else
  skip measure "no GPU"
fi

echo
head -n 1 "$out/kernels.jsonl" 2>/dev/null
printf '%s\n' "${summary[@]}"
printf '%-22s %s in %d s, logs in %s\n' "gpu.sh" "$([ $failed = 0 ] && echo ended || echo FAILED)" \
  $((SECONDS - started)) "$out"
exit $failed
