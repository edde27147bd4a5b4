#!/usr/bin/env bash
# Everything that waits for a GPU, in ten minutes: tests, what guidance and compiling cost, training compared with its peers,
# evaluation, the optimizer on disk, micro_batch auto. Prints a table of the parts; writes OUTPUT/gpu.md (the table and
# every benchmark's rows, ready for RESULTS.md), OUTPUT/PART.log, and adds gpu.md to benchmarks/RESULTS.md.
#
#   benchmarks/gpu.sh [OUTPUT]          one GPU; OUTPUT defaults to runs/gpu
#   benchmarks/gpu.sh --small [OUTPUT]  the same parts in sizes for a CPU, without the tests that need a GPU: shows that
#                                       this script runs; RESULTS.md stays as it is
#
# PYTHON chooses the interpreter (default: .venv's), MINUTES the time of all parts (10). A part that exceeds its share
# is ended, the others still run; a part for which no time is left is listed as "not run". Most valuable parts first.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

small=
if [ "${1:-}" = --small ]; then small=yes; shift; fi
output=$(realpath -m "${1:-runs/gpu}")
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
PATH=$(dirname "$(realpath -s "$python")"):$PATH
export PATH PYTHONPATH=$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$output"
rm -f "$output"/*.log
report=$output/gpu.md
deadline=$((SECONDS + 60 * ${MINUTES:-10}))
rows=() tables=()

# part NAME LIMIT COMMAND…: run at most LIMIT seconds, or what is left; note result and duration.
part() {
  local name=$1 limit=$2 began=$SECONDS left=$((deadline - SECONDS)) code result
  shift 2
  if [ "$left" -lt 10 ]; then rows+=("| $name | not run: the time was over | |"); return; fi
  [ "$limit" -le "$left" ] || limit=$left
  echo "== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" >"$output/$name.log" 2>&1
  code=$?
  case $code in
    0) result=ok ;;
    124 | 137) result="ended after $limit s" ;;
    *) result="failed with $code: see $name.log" ;;
  esac
  # pytest's last line says how many passed; a run that ends early has none.
  local summary
  summary=$(grep -aE '[0-9]+ (passed|failed|skipped|error)' "$output/$name.log" | tail -1 | tr -d '=|')
  rows+=("| $name | $result${summary:+ (${summary## })} | $((SECONDS - began)) s |")
  if grep -qa '^| contender' "$output/$name.log"; then tables+=("$name"); fi
  echo "   $result, $((SECONDS - began)) s"
}

if [ -n "$small" ]; then
  guidance=(--layers 2 --length 64 --repeats 2 --contenders unguided,tap-4,joint-4) lengths=(--length 64 --micro-batch 1)
  gather=(--layers 2 --length 64 --repeats 2) batches=1
  steps=2 groups=trainer host=(--contenders nano,ours-alone) training=(--data.block_length 64)
else
  eager=unguided,tap-4,joint-4,tap-12,joint-12
  compiled=unguided-compiled,tap-4-compiled,joint-4-compiled,tap-12-compiled
  guidance=(--layers 12 --batch 8 --repeats 15 --contenders "$eager,$compiled")
  gather=(--layers 12 --repeats 15) batches='2 4 8 16'
  lengths=(--length 1024 --micro-batch 16)
  steps=12 groups=trainer,trainer-compiled host=() training=()
fi
settings=(--train.steps 4 --train.log_every 1 --validation.blocks 4 "${training[@]}")
test=("$python" -m pytest -q -p no:cacheprovider)

if [ -z "$small" ]; then
  part kernels 60 "${test[@]}" tests/guidance/test_triton.py
fi
part guidance 140 "$python" benchmarks/guidance.py "${guidance[@]}"
part host-guidance 20 "$python" benchmarks/guidance.py host --contenders unguided,joint-4,tap-4,joint-12,tap-12
part host 60 "$python" benchmarks/train.py host --shards embedded --steps "$((2 * steps))" "${host[@]}"
if [ -z "$small" ]; then
  part train-eager 75 "$python" benchmarks/train.py --shards embedded --steps $steps --groups eager --no-memory "${lengths[@]}"
  part train-compiled 120 "$python" benchmarks/train.py --shards embedded --steps $steps --groups compiled --no-memory \
    "${lengths[@]}"
fi
part train-ranks 120 "$python" benchmarks/train.py --shards embedded --steps $steps --groups $groups --no-memory "${lengths[@]}"
# Up to which size heads are gathered: SMALL in gaguide/model/head_runs.py.
part limit 60 bash -c 'for batch in $0; do "$@" --batch $batch; done' "$batches" "$python" benchmarks/guidance.py "${gather[@]}" \
  --no-memory --contenders unguided,inplace-4,gathered-4
part micro-batch-auto 45 "$python" -m gaguide.train --deepspeed zero2 --train.micro_batch auto --output "$output/auto" "${settings[@]}"
part compile 60 "$python" -m gaguide.train --deepspeed zero2 --train.compile true --output "$output/compiled" "${settings[@]}"
part evaluate 45 "$python" -m gaguide.evaluate --model "$output/auto/model" --tasks demo --output "$output/evaluation" --limit 20
if [ -z "$small" ]; then
  part scores 60 "${test[@]}" -m gpu tests/gpu/test_evaluate.py
  part nvme 90 "${test[@]}" -m gpu tests/gpu/test_training.py -k nvme
  part configurations 300 "${test[@]}" -m gpu tests/gpu/test_training.py -k "not nvme"
fi

{
  device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1)
  echo "### $(date +%F), ${device:-no GPU}"
  echo
  "$python" - <<'PYTHON'
from importlib.metadata import version

import torch

names = ("torch", "triton", "transformers", "deepspeed")
found = []
for name in names:
    try:
        found.append(f"{name} {version(name)}")
    except ImportError:
        found.append(f"no {name}")
print(f"`benchmarks/gpu.sh`, {', '.join(found)}, CUDA {torch.version.cuda}. One round.")
PYTHON
  echo
  echo "| part | result | time |"
  echo "|---|---|---|"
  printf '%s\n' "${rows[@]}"
  for name in "${tables[@]}"; do
    printf '\n`%s`:\n\n' "$name"
    grep -a '^|' "$output/$name.log"
  done
} >"$report"
if [ -z "$small" ] && command -v nvidia-smi >/dev/null; then { echo; cat "$report"; } >>benchmarks/RESULTS.md; fi
cat "$report"
! printf '%s\n' "${rows[@]}" | grep -q failed
