#!/usr/bin/env bash
# The experiments as their users run them, with a few steps: what they write, that their numbers
# repeat to the last digit, and what they refuse before anything is trained.
#   tests/examples/experiments_test.sh FOLDER_OF_THE_PROGRAMS
set -euo pipefail
DSV3_EXPERIMENTS=$(realpath "$1")
export DSV3_EXPERIMENTS
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
run=$root/examples/experiments/run
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
failures=0
fail() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}

# Four domains of unlike lines, of which a twentieth is held out: at least 12 rows of 512 bytes.
for i in $(seq 1 5500); do echo "the $((i % 13)). answer to question $i is $((i * i % 97))"; done > prose
for i in $(seq 1 5500); do echo "int f$i(int x) { return x * $((i % 17)) + $((i * 7 % 31)); }"; done > code
for i in $(seq 1 5500); do echo "row $i of the table,$((i * 3 % 101)),$((i * 5 % 103)),$((i * 11 % 107)),$((i % 5))"; done > table
for i in $(seq 1 5500); do echo "set(VARIABLE_$((i % 41)) \"\${VALUE_$i}\") # $((i % 3))"; done > script
texts=(--text prose=prose --text code=code --text table=table --text script=script)

# numbers FILE EXPRESSION: what a Python expression says of the file's content, j.
numbers() { python3 -c "import json, sys; j = json.load(open(sys.argv[1])); print($2)" "$1"; }

# All of them, twice, with another number of threads.
names=$({ "$run" nonsense 2>&1 || true; } | sed 's/.*there are: //')
[ -n "$names" ] || fail "an unknown experiment must be answered with the known ones"
for threads in 1 2; do
  "$run" "${texts[@]}" --scale 0.01 --seeds 1 --threads $threads --out run$threads > log$threads ||
    { fail "a run with $threads threads"; exit 1; }
done
for name in $names; do
  cmp "run1/$name.json" "run2/$name.json" || fail "$name: the numbers differ from run to run"
  grep -q "id=\"$name\"" run1/report.html || fail "the report has no section $name"
  for part in 'The paper:' 'Here:' 'Limits:' '<table'; do
    grep -q "$part" "run1/$name.html" || fail "$name has no '$part'"
  done
done
grep -q '</html>' run1/report.html || fail "the report has no end"
grep -Eq 'http|src=|url\(|>nan|>inf' run1/report.html &&
  fail "the report refers to something outside, or holds what is no number"

is() {  # is FILE EXPRESSION VALUE
  local value
  value=$(numbers "$1" "$2") || value=none
  [ "$value" = "$3" ] || fail "$1: $2 is $value, not $3"
}
"$DSV3_EXPERIMENTS/balance" "${texts[@]}" --scale 0.01 --seeds 2 --out run3 > log3 || fail "two seeds"
is run1/balance.json 'len(j["variants"])' 8
is run3/balance.json '[len(v["runs"]) for v in j["variants"]]' '[2, 2, 2, 2, 2, 2, 2, 2]'
is run1/balance.json 'j["variants"][0]["differs"]' 'the reference'
is run1/balance.json 'j["variants"][3]["differs"]' 'bias_gamma 0.01 -> 0, balance_alpha 0.0001 -> 0'
# The loss over the batch is chosen, and is another one than that over each sequence.
is run1/balance.json 'j["variants"][2]["differs"]' \
  'seq_aux true -> false, bias_gamma 0.01 -> 0, balance_alpha 0.0001 -> 0.03'
is run1/balance.json 'j["variants"][2]["runs"] != j["variants"][1]["runs"]' True
is run3/balance.json 'j["variants"][0]["runs"][0] == j["variants"][0]["runs"][1]' False
# 12 rows of 128 tokens, 4 experts each, 3 layers: every domain counts them all.
is run1/balance.json '{sum(l) for l in j["variants"][0]["runs"][0]["evaluations"][-1]["load"]}' '{18432}'
# The limit holds for every token: 4 domains, 12 rows, 128 tokens, 3 layers.
for limit in 1 2 3; do
  is run1/node_limit.json "sum(j['variants'][4 - $limit]['runs'][0]['evaluations'][-1]['nodes'][$limit + 1:])" 0
done
is run1/node_limit.json '{sum(v["runs"][0]["evaluations"][-1]["nodes"]) for v in j["variants"]}' '{18432}'
# Copies between nodes: none to a token's own node, so fewer than its nodes; inside: at most one an
# expert. A limit of one node leaves at most one copy between.
is run1/node_limit.json 'all(sum(e["between"]) < sum(n * c for n, c in enumerate(e["nodes"])) and
  0 < sum(e["inside"]) < 4 * sum(e["nodes"]) for v in j["variants"]
  for e in [v["runs"][0]["evaluations"][-1]])' True
is run1/node_limit.json 'sum(j["variants"][0]["runs"][0]["evaluations"][-1]["between"]) >
  sum(j["variants"][3]["runs"][0]["evaluations"][-1]["between"])' True
is run1/kv_cache.json 'j["planned"][0]["latent"]' 70272
is run1/mtp.json 'all(0 <= s <= 1 for v in j["stood"] for d in v for s in d)' True
is run1/mtp.json 'all(0 <= s <= 1 for v in j["right"] + j["agreed"] for s in v)' True
is run1/fp8.json '[v["name"] for v in j["study"]["variants"]]' \
  "['bf16', 'fp8', 'per_tensor', 'gradient_blocks', 'hopper_none', 'fp32']"
is run1/context.json '[[len(r["loss"]), len(r["found"]), len(r["found"][0])] for r in j["YaRN, trained on"]]' \
  '[[16, 4, 5]]'
# The same text under other angles, before and after going on with longer rows.
is run1/context.json 'len({str(j[w]) for w in ["as it is", "YaRN", "trained on", "YaRN, trained on"]})' 4
is run1/cost.json 'round(j["models"][0]["hours_per_trillion"] / 1e3)' 181

# refused MESSAGE COMMAND...: exit code 2, that message, and nothing written.
refused() {
  local message=$1 code=0
  shift
  "$@" > refused.out 2>&1 || code=$?
  [ $code = 2 ] || fail "$*: exit code $code instead of 2"
  grep -qF -- "$message" refused.out || fail "$*: must say '$message', says $(cat refused.out)"
  [ ! -e none/balance.json ] || fail "$*: wrote numbers"
}
balance=$DSV3_EXPERIMENTS/balance
head -c 3000 prose > short
refused "domains (1) must be at least 2" "$balance" --text prose=prose --out none
refused "must be at least 12: it has too little text" "$balance" "${texts[@]:0:6}" --text s=short \
  --out none
refused "'prose' must be NAME=PATH" "$balance" --text prose --out none
refused "missing" "$balance" --text a=prose --text b=missing --out none
refused "folder 'prose' cannot be written" "$balance" "${texts[@]}" --out prose
refused "--scale" "$balance" "${texts[@]}" --scale 0 --out none
refused "--seeds" "$balance" "${texts[@]}" --seeds 0 --out none
refused "there is no experiment 'nonsense'" "$run" nonsense

[ $failures -eq 0 ] || exit 1
echo "experiments: all checks passed"
