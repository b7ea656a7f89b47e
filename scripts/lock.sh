#!/usr/bin/env bash
# Resolve pyproject.toml into requirements.lock: every package with its hashes, for Python 3.11 to 3.13 on every platform at once.
# Pins that still fit stay as they are; UPGRADE=1 takes the newest of everything. Needs uv (`.venv/bin/pip install uv`).
# Further arguments go to uv, e.g. `scripts/lock.sh --upgrade-package httpx` or `-c constraints.txt`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! uv=$(command -v .venv/bin/uv || command -v uv); then
  echo "lock: uv was not found; install it with .venv/bin/pip install uv" >&2
  exit 1
fi

[ -z "${UPGRADE:-}" ] || set -- --upgrade "$@"
new=$(mktemp .requirements.lock.XXXXXX)
trap 'rm -f "$new"' EXIT
cp -f requirements.lock "$new" 2>/dev/null || true
"$uv" pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file "$new" "$@"

# A lock must mean the same everywhere: no host, no path of the machine that made it.
if grep -nE '://|^-|^file:| @ ' "$new"; then
  echo "lock: the lines above name a place; requirements.lock was left as it was" >&2
  exit 1
fi
{
  echo "# Made by \`make lock\` from pyproject.toml; installed by \`make setup\`. Do not edit."
  grep -v '^#' "$new"
} > requirements.lock
# What goes into images beside the serving code: the same pins, fewer of them.
"$uv" pip compile deployers/runtime.in --constraint requirements.lock --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file "$new"
{
  echo "# Made by \`make lock\` from deployers/runtime.in with the versions of requirements.lock. Do not edit."
  grep -v '^#' "$new"
} > deployers/runtime.lock
echo "lock: $(grep -c '==' requirements.lock) packages in requirements.lock"
