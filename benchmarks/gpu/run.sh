#!/usr/bin/env bash
# Everything that waits for a GPU, in two commands. Nothing that fails stops what follows.
#   benchmarks/gpu/run.sh speed [PACK]   three minutes: the tests, the pipeline     carries PACK/whl, PACK/race but its tiles
#   benchmarks/gpu/run.sh race [PACK]    nine minutes: the race                     carries PACK/race/tiles
# PACK: what `make gpu-pack` made (carry/gpu). Results go to $OUT (default: PACK/../gpu-out), at most 8 files.
# BUDGET=smoke rehearses both on a CPU.
set -u
cd "$(dirname "$0")/../.."
part=$1; pack=$(realpath "${2:-carry/gpu}"); out=${OUT:-$(dirname "$pack")/gpu-out}; budget=${BUDGET:-gpu}
mkdir -p "$out"; export PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
if [ "$budget" = gpu ]; then
  export PYTHONPATH=/tmp/site
  [ -d /tmp/site ] || "$python" -m pip install -q --no-index --no-deps --no-compile --target /tmp/site "$pack"/whl/*.whl
fi
began=$SECONDS
step() {  # step SECONDS NAME COMMAND...: run it for so long at most, its output in OUT/NAME.txt
  local limit=$1 name=$2; shift 2
  echo "[$((SECONDS - began)) s] $name"
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || echo "  ended with $?: $(tail -n 1 "$out/$name.txt")"
}

if [ "$part" = speed ]; then
  { nvidia-smi; "$python" -V; "$python" -m pip list; } > "$out/machine.txt" 2>&1
  step 80 tests "$python" -m pytest -q --no-header -p no:cacheprovider -m gpu tests/test_compiling.py
  pipeline="benchmarks/pipeline.py --precision bf16-mixed"
  if [ "$budget" = gpu ]; then
    step 45 pipeline-256 "$python" $pipeline --batch 256 --steps 60
    step 45 pipeline-1024 "$python" $pipeline --batch 1024 --steps 30
    step 70 pipeline-compiled "$python" $pipeline --batch 256 --steps 60 --compile
  else
    step 400 pipeline-8 "$python" ${pipeline/bf16-mixed/32} --batch 8 --steps 4 --plain-steps 4  # bf16 crawls here
  fi
else
  [ -d "$pack/race/glas-half" ] || PYTHONPATH=${PYTHONPATH:-}:. "$python" -c "from pathlib import Path
from benchmarks.race.pack import halve
halve(Path('$pack/race/glas'), Path('$pack/race/glas-half'))"
  # One arm leaves most of the GPU idle: all run side by side. Each appends its row when it is done.
  race="benchmarks/race run --race $pack/race --work /tmp/race --budget $budget --rows $out/race.jsonl"
  quick=; [ "$budget" = gpu ] || quick=--quick
  for arm in "random" "moco-v2" "plm" "colocate" "imagenet" "colocate --init imagenet" "colocate-continue --init imagenet"; do
    name=race-$(echo "$arm" | tr -cd 'a-z0-9-')
    step 540 "$name" "$python" $race $arm $quick &
  done
  wait
  grep -hE "linear.*linear" "$out"/race-*.txt > "$out/race.txt"
  tail -n 12 "$out"/race-*.txt > "$out/race-ends.txt"
  find "$out" -name 'race-*.txt' ! -name race-ends.txt -delete
fi
echo "[$((SECONDS - began)) s] done"; ls -la "$out"
