#!/usr/bin/env bash
# The training example as its users run it: what it writes, what it refuses, and that a run that is
# stopped and resumed is, bit for bit, the run that was not.
#   tests/examples/train_test.sh PATH_OF_TRAIN
set -euo pipefail
train=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder" "$folder.out" "$folder.err"' EXIT
cd "$folder"
failures=0
fail() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}

# Text with something to learn: 40 lines of words, repeated with a counter.
for i in $(seq 1 400); do echo "line $i says that $((i * i % 97)) comes after $((i % 7))"; done > text
tiny=(--hidden 32 --layers 2 --heads 2 --q-rank 16 --kv-rank 8 --nope-dim 8 --rope-dim 4 --v-dim 8
  --ffn 48 --expert-ffn 16 --experts 4 --top-k 2 --groups 2 --top-groups 1 --batch 3 --seq 24
  --warmup 3 --eval-every 4 --eval-rows 4 --threads 2)

# What a step computed, without what depends on the clock.
results() { sed -E 's/"(seconds|tokens_per_second)":[^,]*,//g' "$1/metrics.jsonl"; }

# A run to the end, in both precisions: every file, and metrics of every step.
for precision in fp32 bf16; do
  "$train" text "${tiny[@]}" --steps 12 --precision $precision --out whole_$precision > log_$precision ||
    fail "a whole run in $precision"
  for file in run.json state.safetensors metrics.jsonl report.html checkpoint/config.json \
    checkpoint/model.safetensors; do
    [ -s "whole_$precision/$file" ] || fail "$file of the run in $precision is missing"
  done
  [ "$(wc -l < whole_$precision/metrics.jsonl)" = 12 ] || fail "metrics.jsonl must have 12 lines"
  for word in parameters activated 'memory planned' 'unigram entropy' 'bigram entropy' \
    'held-out loss' ETA MaxVio tokens/s; do
    grep -q -- "$word" log_$precision || fail "the terminal must say '$word'"
  done
done

# Stopped by a signal at some step, then resumed, perhaps several times: the same bits. Threads may
# change. The step at which the signal arrives is up to the clock, so any number of rounds is right.
for signal in INT TERM; do
  mkdir -p saved
  "$train" text "${tiny[@]}" --steps 12 --precision bf16 --out stopped > log_stopped 2>&1 &
  pid=$!
  for _ in $(seq 1 400); do
    [ "$(cat stopped/metrics.jsonl 2> /dev/null | wc -l)" -ge 3 ] && break
    sleep 0.01
  done
  kill -$signal $pid 2> /dev/null || true
  code=0
  wait $pid || code=$?
  if grep -q '"finished": true' stopped/run.json; then
    echo "note: the run was faster than the signal"
  else
    expected=$([ $signal = INT ] && echo 130 || echo 143)
    [ $code = "$expected" ] || fail "SIG$signal must end the run with $expected, not $code"
    grep -q 'To continue, run again with --resume --out stopped' log_stopped || fail "how to resume is not said"
    [ -s stopped/report.html ] || fail "a stopped run has no report"
    "$train" --resume --out stopped --threads 1 > log_resumed 2>&1 || fail "resume after SIG$signal"
  fi
  diff <(results whole_bf16) <(results stopped) || fail "a resumed run differs (SIG$signal)"
  cmp whole_bf16/checkpoint/model.safetensors stopped/checkpoint/model.safetensors ||
    fail "the checkpoint of a resumed run differs (SIG$signal)"
  rm -rf stopped
done

# Killed without warning after a state was saved: resume goes back to that state.
"$train" text "${tiny[@]}" --steps 12 --save-every 4 --precision bf16 --out killed > /dev/null 2>&1 &
pid=$!
for _ in $(seq 1 400); do
  [ "$(cat killed/metrics.jsonl 2> /dev/null | wc -l)" -ge 6 ] && break
  sleep 0.01
done
kill -KILL $pid 2> /dev/null || true
wait $pid 2> /dev/null || true
if ! grep -q '"finished": true' killed/run.json; then
  "$train" --resume --out killed > /dev/null || fail "resume after SIGKILL"
fi
diff <(results whole_bf16) <(results killed) || fail "a run killed and resumed differs"

# An interrupted run, made by hand, is neither overwritten nor resumed with other options.
cp -r whole_bf16 half
sed -i 's/"finished": true/"finished": false/' half/run.json

# refused MESSAGE OPTION...: exit code 2, that message, and nothing written.
refused() {
  local message=$1 code=0 before
  shift
  before=$(find . | sort)
  "$train" "$@" > "$folder.out" 2> "$folder.err" || code=$?
  [ $code = 2 ] || fail "$*: exit code $code instead of 2"
  [ "$(head -1 "$folder.err")" = "train: $message" ] ||
    fail "$*: '$(head -1 "$folder.err")' instead of '$message'"
  [ ! -s "$folder.out" ] || fail "$*: wrote to standard output"
  [ "$before" = "$(find . | sort)" ] || fail "$*: wrote files"
}
: > empty
head -c 5 text > odd
refused "--steps (0) must be at least 1" text --steps 0
refused "--seq (0) must be at least 1" text --seq 0
refused "--batch (-1) must be at least 1" text --batch -1
refused "--lr (-1) must be at least 0" text --lr -1
refused "--lr (nan) must be at least 0" text --lr nan
refused "--held-out (0.7) must be at most 0.5" text --held-out 0.7
refused "--held-out (0) must be above 0" text --held-out 0
refused "--precision (fp7) must be one of fp32, bf16, fp8" text --precision fp7
refused "--format (utf8) must be one of bytes, u16, u32" text --format utf8
refused "--threads (-1) must be at least 0" text --threads -1
refused "--threads (5000) must be at most 1024" text --threads 5000
refused "--vocab-size (256) must be at least 257 with --format bytes" text --vocab-size 256
refused "--mtp (8) must be below --seq (8)" text --mtp 8 --seq 8
refused "--batch times --seq (268435456) must be at most 16777216" text --batch 16384 --seq 16384
refused "Could not convert: --steps = many" text --steps many
refused "The following argument was not expected: --stepz" text --stepz 3
refused "--out must name a folder" text --out ""
refused "--out: '$PWD/text' is not a folder" text --out text/below
refused "--resume: 'none' holds no run to continue (no run.json)" --resume --out none
refused "--resume: the run in 'whole_bf16' is finished" --resume --out whole_bf16
refused "--resume: --seed (7) must be that of the run in 'half' (1)" --resume --out half --seed 7
refused "--resume: the text must be that of the run in 'half'" odd --resume --out half
refused "--out: 'half' holds an interrupted run: continue it with --resume, remove the folder, or name another one" \
  text --out half
refused "TextData: no such file or folder: 'missing'" missing
refused "TextData: 'empty' is empty" empty
refused "TextData: size of 'odd' (5 bytes) must be a multiple of 2" odd --format u16
refused "TextData: tokens (6) must be at least those of 2 rows (514)" odd
refused "ModelConfig: num_experts_per_tok (17) must be at most n_routed_experts (16)" text --top-k 17
refused "ModelConfig: n_group (3) must divide n_routed_experts (16)" text --groups 3
refused "ModelConfig: qk_rope_head_dim (5) must be even: it rotates pairs" text --rope-dim 5
refused "ModelConfig: first_k_dense_replace (5) must be at most num_hidden_layers (4)" text --dense-layers 5

# How much memory there is depends on the machine.
code=0
"$train" text --layers 900 --hidden 8192 --experts 4096 --expert-ffn 8192 --out huge > /dev/null \
  2> "$folder.err" || code=$?
[ $code = 2 ] && grep -Eq "^train: memory planned \([0-9]+ MiB\) must be at most this machine's \([0-9]+ MiB\)" \
  "$folder.err" || fail "more memory than there is: $(head -1 "$folder.err")"
[ ! -e huge ] || fail "more memory than there is: wrote files"

"$train" --help | grep -q -- --resume || fail "--help must list --resume"
[ $failures = 0 ] && echo "all passed"
exit $((failures > 0))
