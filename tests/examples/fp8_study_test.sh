#!/usr/bin/env bash
# The FP8 study as its users run it: what it writes, that its numbers repeat, that looking into
# products changes nothing and finds every product of every variant, and what it refuses.
#   tests/examples/fp8_study_test.sh PATH_OF_FP8_STUDY
set -euo pipefail
study=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder" "$folder.out" "$folder.err"' EXIT
cd "$folder"
failures=0
fail() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}

for i in $(seq 1 400); do echo "line $i says that $((i * i % 97)) comes after $((i % 7))"; done > text
tiny=(text --hidden 32 --layers 2 --heads 2 --q-rank 16 --kv-rank 8 --nope-dim 8 --rope-dim 4
  --v-dim 8 --ffn 48 --expert-ffn 16 --experts 4 --top-k 2 --groups 2 --top-groups 1 --mtp 1
  --batch 3 --seq 24 --warmup 1)

# numbers FILE EXPRESSION: what a Python expression says of the file's content, j.
numbers() { python3 -c "import json, sys; j = json.load(open(sys.argv[1])); print($2)" "$1"; }

# Twice the same command, with another number of threads: the same numbers, to the last digit.
for threads in 1 2; do
  "$study" "${tiny[@]}" --steps 5 --probe-every 2 --seeds 2 --variants fp8,fp32 --threads $threads \
    --out run$threads > log$threads || fail "a run with $threads threads"
done
cmp run1/fp8_study.json run2/fp8_study.json || fail "the numbers differ from run to run"
for word in bf16 fp8 fp32 gap 'over seeds' ETA run1/fp8_study.html run1/fp8_study.json; do
  grep -q -- "$word" log1 || fail "the terminal must say '$word'"
done
grep -q '</html>' run1/fp8_study.html || fail "the page has no end"
grep -Eq 'http|src=|href=|url\(' run1/fp8_study.html && fail "the page refers to something outside"
[ "$(numbers run1/fp8_study.json '[v["name"] for v in j["variants"]]')" = "['bf16', 'fp8', 'fp32']" ] ||
  fail "BF16 comes first, then the variants in the order of the command line"
[ "$(numbers run1/fp8_study.json '[r["seed"] for r in j["variants"][1]["runs"]]')" = '[1, 2]' ] ||
  fail "the seeds count from --seed on"
[ "$(numbers run1/fp8_study.json '[m["step"] for m in j["variants"][1]["measurements"]]')" = \
  '[1, 2, 4, 5]' ] || fail "products are looked into first, every second step, and last"
[ "$(numbers run1/fp8_study.json '[l["layer"] for l in j["variants"][1]["measurements"][0]["relative_errors"] if l["projection"] == "q_a"]')" = \
  '[0, 1, 2]' ] || fail "each layer is measured, that of MTP too"

# Every variant: nothing that is not known, and losses do not depend on who looks.
losses='[[r["loss"] for r in v["runs"]] for v in j["variants"]]'
"$study" "${tiny[@]}" --steps 3 --probe-every 1 --variants all --out looked > /dev/null || fail "all"
"$study" "${tiny[@]}" --steps 3 --probe-every 0 --variants all --out blind > /dev/null || fail "all"
[ "$(numbers looked/fp8_study.json "$losses")" = "$(numbers blind/fp8_study.json "$losses")" ] ||
  fail "looking into products changes losses"
[ "$(numbers looked/fp8_study.json 'sum(m["products_not_measured"] for v in j["variants"] for m in v["measurements"])')" = 0 ] ||
  fail "some products are not measured"
[ "$(numbers looked/fp8_study.json 'all(0 < e[r] < 0.5 for v in j["variants"] for m in v["measurements"] for e in m["relative_errors"] for r in ("y", "dx", "dw"))')" = True ] ||
  fail "an error of a product is not between 0 and 0.5"
[ "$(numbers blind/fp8_study.json 'sum(len(v["measurements"]) for v in j["variants"])')" = 0 ] ||
  fail "--probe-every 0 looks into products"

# refused MESSAGE OPTION...: exit code 2, that message, and nothing written.
refused() {
  local message=$1 code=0 before
  shift
  before=$(find . | sort)
  "$study" "$@" > "$folder.out" 2> "$folder.err" || code=$?
  [ $code = 2 ] || fail "$*: exit code $code instead of 2"
  [ "$(head -1 "$folder.err" | cut -c-${#message})" = "$message" ] ||
    fail "$*: '$(head -1 "$folder.err")' does not begin with '$message'"
  [ ! -s "$folder.out" ] || fail "$*: wrote to standard output"
  [ "$before" = "$(find . | sort)" ] || fail "$*: wrote files"
}
refused "fp8_study: --variants (fp9) must be one of all, bf16, fp32, fp8, " text --variants fp8,fp9
refused "fp8_study: --variants (bf16) must name one beside bf16" text --variants bf16
refused "fp8_study: --variants () must name one beside bf16" text --variants ""
refused "fp8_study: --seeds (0) must be at least 1" text --seeds 0
refused "fp8_study: --probe-every (-1) must be at least 0" text --probe-every -1
refused "fp8_study: --steps (0) must be at least 1" text --steps 0
refused "fp8_study: --out: '$PWD/text' is not a folder" text --out text/below
refused "fp8_study: The following argument was not expected: --precision" text --precision fp32
refused "fp8_study: TextData: no such file or folder: 'missing'" missing
refused "fp8_study: ModelConfig: n_group (3) must divide n_routed_experts (8)" text --groups 3

for word in --variants --probe-every --hidden hopper_none per_tensor; do
  "$study" --help | grep -q -- "$word" || fail "--help must list $word"
done
[ $failures = 0 ] && echo "all passed"
exit $((failures > 0))
