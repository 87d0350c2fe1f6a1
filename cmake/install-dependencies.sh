#!/usr/bin/env bash
# Installs what dsv3 needs that is not on this machine yet (Debian 12 and its relatives):
#   cmake/install-dependencies.sh                 to build the library, tests, examples, benchmarks
#   cmake/install-dependencies.sh --build-only    to build the library and the examples
#   cmake/install-dependencies.sh --all           and for every stage of .ci/run
# Does nothing where everything is there. Uses sudo where it is not root; where it can do neither,
# it says what is missing and exits with 1.
set -euo pipefail

level=${1:-tests}
# Debian package, and what shows that it is not needed: a command, a header or a file.
needs=(
  "g++ command g++"
  "cmake command cmake"
  "ninja-build command ninja"
  "libeigen3-dev header eigen3/Eigen/Core"
  "nlohmann-json3-dev header nlohmann/json.hpp"
  "libpcre2-dev header pcre2.h"
  "libcli11-dev header CLI/CLI.hpp"
)
tests=(
  "doctest-dev header doctest/doctest.h"
  "libbenchmark-dev header benchmark/benchmark.h"
  "python3 command python3"
)
all=(
  "clang command clang++"
  "libclang-rt-14-dev file /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.asan-$(uname -m).a"
  "gcovr command gcovr"
  "g++-aarch64-linux-gnu command aarch64-linux-gnu-g++"
)
case $level in
  --build-only) ;;
  tests) needs+=("${tests[@]}") ;;
  --all) needs+=("${tests[@]}" "${all[@]}") ;;
  *) echo "usage: $0 [--build-only | --all]" >&2; exit 2 ;;
esac

is_there() {
  case $1 in
    command) command -v "$2" > /dev/null ;;
    header) [ -e "/usr/include/$2" ] || [ -e "/usr/local/include/$2" ] ;;
    file) compgen -G "$2" > /dev/null ;;
  esac
}

find_missing() {
  missing=()
  local package kind what
  for need in "${needs[@]}"; do
    read -r package kind what <<< "$need"
    is_there "$kind" "$what" || missing+=("$package")
  done
}

find_missing
[ ${#missing[@]} -gt 0 ] || exit 0

give_up() {
  echo "dsv3: missing packages: ${missing[*]}" >&2
  echo "$1" >&2
  exit 1
}

command -v apt-get > /dev/null ||
  give_up "There is no apt-get here: install what these Debian packages hold in this system's way."
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  as_root=(sudo)
  command -v sudo > /dev/null && { [ -t 0 ] || sudo -n true 2> /dev/null; } ||
    give_up "Not root, and sudo cannot be used: run as root  apt-get install ${missing[*]}"
fi
echo "dsv3: installing ${missing[*]}"
apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq)
"${as_root[@]}" "${apt[@]}" update || true  # a package may come from the lists already there
"${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "${missing[@]}" > /dev/null ||
  give_up "apt-get could not install them; its message is above."
find_missing
[ ${#missing[@]} -eq 0 ] || give_up "apt-get installed them, and they still cannot be found."
