#!/usr/bin/env bash
# Everything that waits for a GPU, in nine minutes: tests, speed, the race. Nothing that fails stops what follows.
#   benchmarks/gpu/run.sh [PACK]        PACK: what `make gpu-pack` made; results go to $OUT (default: PACK/../gpu-out)
# BUDGET=smoke rehearses it on a CPU.
set -u
cd "$(dirname "$0")/../.."
pack=$(realpath "${1:-carry/gpu}"); out=${OUT:-$(dirname "$pack")/gpu-out}; budget=${BUDGET:-gpu}
mkdir -p "$out"; export PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
if [ "$budget" = gpu ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site "$pack"/whl/*.whl
  export PYTHONPATH=/tmp/site
fi
began=$SECONDS
step() {  # step SECONDS NAME COMMAND...: run it for so long at most, its output in OUT/NAME.txt
  local limit=$1 name=$2; shift 2
  echo "[$((SECONDS - began)) s] $name"
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || echo "  ended with $?: $(tail -n 1 "$out/$name.txt")"
}
nvidia-smi > "$out/machine.txt" 2>&1; "$python" -V >> "$out/machine.txt"

step 60 tests "$python" -m pytest -q -x --no-header -p no:cacheprovider tests/test_train.py tests/test_compiling.py -k cuda

batches="256 1024"; steps="--steps 60"; [ "$budget" = gpu ] || { batches=8; steps="--steps 2 --plain-steps 1"; }
for batch in $batches; do
  step 40 "pipeline-$batch" "$python" benchmarks/pipeline.py --batch "$batch" --precision bf16-mixed $steps
done
[ "$budget" = gpu ] && step 60 pipeline-compiled "$python" benchmarks/pipeline.py --batch 256 --precision bf16-mixed --compile

# One arm leaves most of the GPU idle: all run side by side.
race="benchmarks/race run --race $pack/race --work /tmp/race --budget $budget --rows $out/race.jsonl"
quick=; [ "$budget" = gpu ] || quick=--quick
left=$((530 - SECONDS + began))
for arm in "random" "moco-v2" "plm" "colocate" "imagenet" "colocate --init imagenet" "moco-v2 --init imagenet"; do
  name=race-$(echo "$arm" | tr -cd 'a-z0-9-')
  step "$left" "$name" "$python" $race $arm $quick &
done
wait
cat "$out"/race-*.txt | grep -E "linear" > "$out/race.txt"
rm -f "$out"/race-*.txt
echo "[$((SECONDS - began)) s] done"; ls -la "$out"
