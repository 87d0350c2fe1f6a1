#!/usr/bin/env bash
# The conversion example as its users run it: what it writes, what it refuses, and that a killed run
# leaves nothing in the way of the next one.
#   tests/examples/convert_test.sh PATH_OF_CONVERT
set -euo pipefail
convert=$(realpath "$1")
golden=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../golden")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
failures=0
fail() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}

cp -r "$golden/fp8_checkpoint" in
echo '{}' > in/tokenizer.json
echo 'x' > in/notes.txt

# FP8 to BF16, in shards: config.json without quantization_config, the tokenizer carried along.
"$convert" in bf16 --dtype bf16 --shard-size 300KB > log || fail "fp8 to bf16"
grep -q quantization_config bf16/config.json && fail "BF16 with a quantization_config"
grep -q '"torch_dtype": "bfloat16"' bf16/config.json || fail "no torch_dtype"
[ -s bf16/model.safetensors.index.json ] || fail "no index of shards"
[ "$(find bf16 -name 'model-*-of-*.safetensors' -size -310k | wc -l)" -ge 3 ] || fail "no shards of 300 KB"
cmp -s in/tokenizer.json bf16/tokenizer.json || fail "the tokenizer was not carried along"
[ ! -e bf16/notes.txt ] || fail "a file that is no part of a checkpoint was copied"
[ "$(wc -l < log)" -ge 5 ] && [ "$(wc -l < log)" -le 12 ] || fail "off a terminal: a line for each tenth"
grep -q '^\[####################\] 100 %' log || fail "the last line says 100 %"
[ ! -e bf16.tmp ] || fail "a temporary folder was left"

# To FP8 and back: FP32 keeps every value, so the codes come back.
"$convert" bf16 fp8 --dtype fp8 > /dev/null || fail "bf16 to fp8"
grep -q quantization_config fp8/config.json || fail "FP8 without a quantization_config"
"$convert" fp8 fp32 --dtype fp32 > /dev/null || fail "fp8 to fp32"
"$convert" fp32 again --dtype fp8 > /dev/null || fail "fp32 to fp8"
cmp fp8/model.safetensors again/model.safetensors || fail "fp8 to fp32 to fp8 changed the weights"

# Killed at any moment: the target is absent or whole, and the next run is not in the way.
for i in $(seq 1 20); do
  rm -rf killed
  "$convert" in killed --dtype bf16 > /dev/null 2>&1 &
  pid=$!
  sleep "0.00$((i % 10))"
  kill -KILL $pid 2> /dev/null || true
  wait $pid 2> /dev/null || true
  [ ! -e killed ] || "$convert" killed whole --dtype bf16 --replace > /dev/null || fail "a killed run left half a folder"
done
rm -rf killed
"$convert" in killed --dtype bf16 > /dev/null || fail "after a killed run"
[ ! -e killed.tmp ] || fail "what a killed run left was not removed"

# refused CODE MESSAGE ARGUMENT...: that exit code and message, and nothing written.
refused() {
  local code=0 expected=$1 message=$2 before
  shift 2
  before=$(find . | sort)
  "$convert" "$@" > out.log 2> err.log || code=$?
  [ $code = "$expected" ] || fail "$*: exit code $code instead of $expected"
  [ "$(head -1 err.log)" = "convert: $message" ] || fail "$*: '$(head -1 err.log)' instead of '$message'"
  [ ! -s out.log ] || fail "$*: wrote to standard output"
  [ "$before" = "$(find . | sort)" ] || fail "$*: wrote files"
}
touch out.log err.log
refused 2 "AtomicFolder: 'bf16' exists already" in bf16 --dtype fp32
refused 2 "--dtype: fp16 not in {bf16,fp32,fp8}" in out --dtype fp16
refused 2 "--dtype is required" in out
refused 1 "MappedFile: open 'none/config.json': No such file or directory" none out --dtype bf16
mkdir bad
cp in/config.json bad
refused 2 "CheckpointFiles: 'bad': holds neither model.safetensors nor model.safetensors.index.json" bad out --dtype bf16
cp in/model* bad
rm bad/model-00002-of-000002.safetensors
refused 2 "CheckpointFiles: 'bad/model.safetensors.index.json': file 'model-00002-of-000002.safetensors' is missing" \
  bad out --dtype bf16

"$convert" in bf16 --dtype bf16 --replace > /dev/null || fail "--replace"
"$convert" --help | grep -q -- --shard-size || fail "--help must list --shard-size"
[ $failures = 0 ] && echo "all passed"
exit $((failures > 0))
