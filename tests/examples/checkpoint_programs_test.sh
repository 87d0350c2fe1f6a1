#!/usr/bin/env bash
# The programs that work on checkpoint folders, on a folder that training left: generate, perplexity,
# finetune and convert, one after the other, and what they refuse.
#   tests/examples/checkpoint_programs_test.sh FOLDER_OF_THE_PROGRAMS
set -euo pipefail
bin=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
failures=0
fail() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}
# refuses STATUS WORDS COMMAND...: the command ends with the status, and says the words on stderr.
refuses() {
  local status=$1 words=$2 code=0
  shift 2
  "$@" > refused.out 2> refused.err || code=$?
  [ $code = "$status" ] || fail "$* must end with $status, not $code"
  grep -qF -- "$words" refused.err || fail "$* must say '$words', not '$(cat refused.err)'"
}

for i in $(seq 1 300); do echo "line $i says that $((i * i % 97)) comes after $((i % 7))"; done > text
"$bin/train" text --hidden 48 --layers 2 --heads 2 --q-rank 16 --kv-rank 16 --nope-dim 8 \
  --rope-dim 8 --v-dim 8 --ffn 64 --expert-ffn 16 --experts 4 --top-k 2 --groups 2 --top-groups 1 \
  --batch 4 --seq 48 --warmup 3 --eval-every 40 --eval-rows 4 --steps 40 --threads 2 > train.log
grep -q 'with drafts of MTP' train.log || fail "train must show speculation"
grep -q 'the text is the same' train.log || fail "speculation must not change the text"
model=out/checkpoint

# Text: the same with and without speculation, in blocks of any answer count; ids where asked for.
"$bin/generate" $model --prompt 'line 1' --max-tokens 60 --ignore-eos > with 2> stats
"$bin/generate" $model --prompt 'line 1' --max-tokens 60 --ignore-eos --no-speculation > without 2> stats2
cmp -s with without || fail "speculation changed the text"
[ "$(wc -c < with)" -ge 60 ] || fail "60 bytes must be written"
grep -q 'drafts that stood' stats || fail "generate must tell the acceptance"
grep -q 'tokens/s' stats && grep -q 'cache' stats || fail "generate must tell speed and cache"
grep -q 'drafts' stats2 && fail "no drafts without speculation"
for seed in 1 1 2; do
  "$bin/generate" $model --prompt 'line' --max-tokens 40 --temperature 1 --top-p 0.95 --seed $seed \
    --ignore-eos 2> /dev/null > sampled_$seed.new
  [ ! -e sampled_$seed ] || cmp -s sampled_$seed sampled_$seed.new || fail "a seed must repeat"
  mv sampled_$seed.new sampled_$seed
done
cmp -s sampled_1 sampled_2 && fail "seeds must differ"
"$bin/generate" $model --prompt 'line' --samples 3 --max-tokens 10 --temperature 1 > three 2> /dev/null
[ "$(grep -c '^--- sample' three)" = 3 ] || fail "three samples"
"$bin/generate" $model --prompt 'line 1' --max-tokens 60 --ignore-eos --stop "$(cut -c3-5 with | head -1)" \
  2> /dev/null > stopped
[ "$(head -c 2 with)" = "$(head -c 2 stopped)" ] || fail "text must end before the stop string"
[ "$(wc -c < stopped)" -lt 10 ] || fail "text must end at the stop string"
cp -r $model bare && rm bare/tokenizer.json
"$bin/generate" bare --tokens 108,105,110 --max-tokens 4 --ignore-eos > ids 2> /dev/null
grep -qE '^[0-9]+(,[0-9]+){3}$' ids || fail "ids where there is no tokenizer"
for precision in fp32 bf16 fp8; do
  "$bin/generate" $model --prompt 'line' --max-tokens 5 --precision $precision --cache fp8 > /dev/null 2>&1 ||
    fail "generate in $precision"
done

# Perplexity falls by finetuning; the folder keeps its tokenizer.
nats() { "$bin/perplexity" "$@" --context 48 2> /dev/null | sed -n 's/^nats\/token *//p'; }
before=$(nats $model text)
"$bin/finetune" $model text tuned --steps 30 --lr 3e-3 --seq 48 --batch 4 --warmup 2 --dtype fp32 > tune.log
after=$(nats tuned text)
awk -v a="$after" -v b="$before" 'BEGIN { exit !(a < b) }' || fail "finetuning: $before, then $after"
for word in 'held-out loss before' 'held-out loss after' saved ETA; do
  grep -q "$word" tune.log || fail "finetune must say '$word'"
done
[ -s tuned/tokenizer.json ] || fail "finetune must keep the tokenizer"

# FP8 and back: read as it was written, and nearly as good.
"$bin/convert" tuned tuned8 --dtype fp8 > /dev/null
awk -v a="$(nats tuned8 text)" -v b="$after" 'BEGIN { exit !(a < b + 0.1) }' || fail "FP8 is much worse"
"$bin/generate" tuned8 --prompt 'line' --max-tokens 5 > /dev/null 2> stats8
grep -q '(fp8)' stats8 || fail "an FP8 folder must be read in FP8"
"$bin/finetune" tuned8 text again8 --steps 2 --seq 48 --batch 4 > /dev/null
grep -q quantization_config again8/config.json || fail "finetune must write FP8 where it read FP8"

# What is refused: 2, a sentence, and nothing is written.
refuses 2 'a prompt is needed' "$bin/generate" $model
refuses 2 'holds no tokenizer.json' "$bin/generate" bare --prompt x
refuses 2 'must be at least 0 and below vocab_size (257)' "$bin/generate" $model --tokens 1,999
refuses 2 'top_p (2.000000) must be above 0' "$bin/generate" $model --prompt x --top-p 2
refuses 2 'has no added token' "$bin/generate" $model --prompt x --chat
refuses 1 'No such file' "$bin/generate" nowhere --prompt x
refuses 2 'must be below --context' "$bin/perplexity" $model text --context 16 --stride 16
refuses 1 'No such file' "$bin/perplexity" $model nowhere
refuses 2 "'tuned' exists" "$bin/finetune" $model text tuned
head -c 40 text > short
refuses 2 'must be at least those of 2 rows' "$bin/finetune" $model short new --seq 48
[ ! -e new ] || fail "a refused finetune must write nothing"

[ $failures = 0 ] && echo "checkpoint programs: passed"
exit $((failures > 0))
