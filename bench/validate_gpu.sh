#!/usr/bin/env bash
# Validates the library on a machine with a Hopper GPU and no network: builds pykernels._C with
# prebuilt kernels, runs all tests on the GPU, compares emulator and GPU bit by bit, then benches.
# Writes validation.json and validate.log into the output folder; run again to resume there.
#
# Exit status: 0 all passed, 1 something failed, 2 usage or environment, 3 no Hopper GPU.
set -uo pipefail

usage() {
  cat <<'END'
usage: bench/validate_gpu.sh --wheels DIR --kernels DIR --out DIR [--baselines DIR] [--python PYTHON]
                             [--budget SECONDS]
  --wheels DIR      wheels of the requirements that the machine lacks (never torch: the one found is used)
  --kernels DIR     prebuilt kernels: NAME.ptx, NAME.cubin, NAME.json of each
  --out DIR         results, log and stamps of finished stages
  --baselines DIR   what bench/baselines/build.py made (default: CUTLASS's rows say "not built")
  --python PYTHON   a Python from 3.10 that has torch 2.6 or newer (default: python3)
  --budget SECONDS  time for the bench stage (default: 1200)
END
}

fail() {
  echo "validate_gpu: $1" >&2
  exit 2
}

wheels= kernels= out= baselines= python=python3 budget=1200
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels | --kernels | --out | --baselines | --python | --budget)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail "unknown argument $1" ;;
  esac
done
[ -n "$wheels" ] && [ -n "$kernels" ] && [ -n "$out" ] || { usage >&2; exit 2; }
[ -d "$wheels" ] || fail "--wheels $wheels is no folder"
[ -d "$kernels" ] || fail "--kernels $kernels is no folder"
[ -z "$baselines" ] || [ -d "$baselines" ] || fail "--baselines $baselines is no folder"
python=$(command -v "$python") || fail "--python names no program"

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
wheels=$(cd "$wheels" && pwd)
kernels=$(cd "$kernels" && pwd)
[ -z "$baselines" ] || PYKERNELS_BASELINES_DIR=$(cd "$baselines" && pwd)
mkdir -p "$out/stamps" || exit 2
out=$(cd "$out" && pwd)
cd "$repository" || exit 2
exec > >(tee -a "$out/validate.log") 2>&1

commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
venv=$out/venv
failed=0

# stage NAME FATAL COMMAND...: runs the command unless it has passed at this commit already.
stage() {
  local name=$1 fatal=$2 status
  shift 2
  if [ "$(cat "$out/stamps/$name" 2>/dev/null)" = "$commit" ]; then
    echo "== $name: done before"
    return
  fi
  echo "== $name: $(date -u +%H:%M:%S)"
  "$@"
  status=$?
  if [ $status -eq 0 ]; then
    echo "$commit" > "$out/stamps/$name"
  elif [ "$fatal" = fatal ]; then
    echo "== $name: stopped with status $status"
    exit $status
  else
    failed=1
  fi
}

validate() { "$venv/bin/python" -m bench.validate "$@" --out "$out"; }

# An environment of its own that sees the packages of the Python found, torch above all.
make_environment() {
  "$python" -m bench.validate environment || return
  "$python" -m venv --without-pip "$venv" || return 2
  "$python" - "$venv" <<'END'
import pathlib, sys
(site,) = pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages")
found = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
lines = [f"import site; site.addsitedir({path!r})\n" for path in found]
(site / "found.pth").write_text("".join(lines))
END
}

install_requirements() {
  local name names
  local pip=("$venv/bin/python" -m pip install --quiet --no-index --find-links "$wheels")
  names=$(validate missing --essential) || return 2
  if [ -n "$names" ]; then
    # shellcheck disable=SC2086
    "${pip[@]}" $names || return 2
  fi
  for name in $(validate missing); do
    "${pip[@]}" "$name" || echo "no wheel for $name in $wheels: the tests that need it will fail"
  done
}

build() {
  PYKERNELS_KERNELS_DIR=$kernels "$venv/bin/python" setup.py --quiet build_ext --inplace || return 2
  validate build
}

export PYKERNELS_KERNELS_DIR=$kernels
[ -z "$baselines" ] || export PYKERNELS_BASELINES_DIR
stage environment fatal make_environment
stage requirements fatal install_requirements
stage build fatal build
rm -f "$out/stamps/gpu"
stage gpu fatal validate gpu
stage tests continue validate tests
stage bits continue validate bits
stage bench continue validate bench --budget "$budget"
rm -f "$out/stamps/report"
stage report continue validate report
exit $failed
