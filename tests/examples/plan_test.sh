#!/usr/bin/env bash
# The planner as its users run it: what it says of every published model, what it writes, and what
# it refuses before it says or writes anything.
#   tests/examples/plan_test.sh PATH_OF_PLAN
set -euo pipefail
plan=$(realpath "$1")
golden=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../golden")
folder=$(mktemp -d)
trap 'rm -rf "$folder" "$folder.out" "$folder.err"' EXIT
cd "$folder"
failures=0
fail() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}

# says NAME VALUE: a line of the last output, whatever blanks lie between.
says() {
  grep -Eq "^  $1 +$2\$" "$folder.out" || fail "no line '$1 ... $2' in: $(grep -E "^  $1" "$folder.out" || true)"
}

# DeepSeek-V3 and its own run, by default: the published figures.
"$plan" > "$folder.out" || fail "without options"
[ -z "$(ls)" ] || fail "wrote files without being asked to"
says 'main model' '671 026 419 200'
says 'training' '250.46 GFLOP'
says 'latent, BF16' '70 272 B'
says 'for comparison, MHA, BF16' '3 997 696 B'
says 'groups of GQA with a cache of this size' '2.25'
says 'micro-batches of a step in a pipeline' '120'
says 'idle in 1F1B' '11.11 %'
says 'idle in DualPipe, chosen' '3.74 %'
says 'dispatched row' '7 392 B'
says 'nodes it goes to, on average' '3.63'
says 'tokens of a step' '62 914 560'
says 'days for 10\^12 tokens' '3.68'
says 'GPU-hours for 1.48e\+13 tokens' '2 674 422'

# Every published model, in every precision, each in under a second.
for model in deepseek_v3:671026419200 deepseek_v2:235741434880 deepseek_v2_lite:15706484224 \
  moonlight:15960110208 kimi_k2:1026408232448; do
  for policy in fp32 bf16 fp8; do
    timeout 1 "$plan" "${model%:*}" --policy $policy --out "of/$model/$policy" > "$folder.out" ||
      fail "$model in $policy: failed, or took more than a second"
    grep -q "\"main\": ${model#*:}\$\|\"main\": ${model#*:}," "of/$model/$policy/plan.json" ||
      fail "$model: no such number of parameters in plan.json"
    grep -q '</html>' "of/$model/$policy/plan.html" || fail "$model: the page has no end"
    grep -Eq 'http|src=|href=|url\(' "of/$model/$policy/plan.html" &&
      fail "$model: the page refers to something outside"
  done
done
"$plan" --help > "$folder.out" || fail "--help"
for word in deepseek_v2_lite kimi_k2 --gpus --policy --out; do
  grep -q -- "$word" "$folder.out" || fail "--help must name $word"
done

# A config.json, and the folder it lies in; a layout of one's own.
for from in "$golden/v3" "$golden/v3/config.json"; do
  "$plan" "$from" --gpus 1 --pp 1 --batch 4 --policy fp32 > "$folder.out" || fail "$from"
  says 'GPUs' 1
done
"$plan" --gpus 2048 --pp 16 --dp 128 --ep 64 --schedule 1f1b --recompute --tokens 1e12 \
  --tflops 386.13 > "$folder.out" || fail "all options of a layout"
says 'idle in 1F1B, chosen' '11.11 %'
says 'days for 10\^12 tokens' '3.67' # the measured step, by spec 10.4's FLOPs
"$plan" moonlight --dp 8 --pp 1 --batch 64 > "$folder.out" || fail "--dp without --gpus"
says 'GPUs' 8
says 'experts of a layer on a GPU' 8

# refused CODE MESSAGE ARGUMENT...: that exit code and first line, and nothing said or written.
refused() {
  local code=0 expected=$1 message=$2 before
  shift 2
  before=$(find . | sort)
  "$plan" "$@" > "$folder.out" 2> "$folder.err" || code=$?
  [ $code = "$expected" ] || fail "$*: exit code $code instead of $expected"
  [ "$(head -1 "$folder.err")" = "plan: $message" ] ||
    fail "$*: '$(head -1 "$folder.err")' instead of '$message'"
  [ ! -s "$folder.out" ] || fail "$*: wrote to standard output"
  [ "$before" = "$(find . | sort)" ] || fail "$*: wrote files"
}
names='deepseek_v3, deepseek_v2, deepseek_v2_lite, moonlight, kimi_k2'
refused 2 "model (gpt) must be a config.json, a folder with one, or one of $names" gpt --out new
refused 2 'Layout: gpus (2048) must equal pp * dp (1920)' --gpus 2048 --pp 15 --dp 128 --out new
refused 2 'Layout: ep (3) must divide dp (128)' --ep 3 --out new
refused 2 'Layout: ep (128) must divide n_routed_experts (160)' deepseek_v2 --ep 128 --out new
refused 2 'Layout: pp (32) must be at most num_hidden_layers (27)' moonlight --pp 32 --out new
refused 2 'Layout: batch (15361) must be a multiple of dp * micro_batch (128)' --batch 15361 --out new
refused 2 'Layout: pp (3) must be even for dual_pipe: a multiple of (2)' --pp 3 --dp 128 --schedule dualpipe
refused 2 'Layout: sequence (8193) must be at most max_position_embeddings (8192)' moonlight --seq 8193
refused 2 '--gpus (-1) must be at least 0' --gpus -1 --out new
refused 2 '--tokens (0) must be at least 1' --tokens 0
refused 2 '--tokens (nan) must be at least 1' --tokens nan
refused 2 '--policy (fp4) must be one of fp32, bf16, fp8' --policy fp4 --out new
refused 2 '--schedule (vpp) must be one of auto, 1f1b, zb1p, dualpipe' --schedule vpp
refused 2 'The following argument was not expected: --gpu' --gpu
touch file
refused 2 "--out: '$folder/file' is not a folder" --out file/new
mkdir closed
chmod 500 closed
[ -w closed ] || refused 2 "--out: no permission to write in '$folder/closed'" --out closed/new
sed 's/"num_experts_per_tok": *[0-9]*/"num_experts_per_tok": 99/' "$golden/v3/config.json" > bad.json
refused 2 "load_config: 'bad.json': ModelConfig: num_experts_per_tok (99) must be at most n_routed_experts (8)" \
  bad.json --out new
echo '{' > broken.json
code=0
"$plan" broken.json --out new > "$folder.out" 2> "$folder.err" || code=$?
[ $code = 2 ] && [ ! -e new ] && grep -q "^plan: load_config: 'broken.json': " "$folder.err" ||
  fail "broken.json: $code, $(head -1 "$folder.err")"

[ $failures = 0 ] && echo "all passed"
exit $((failures > 0))
