#!/bin/bash
# python.sh: print the Python that has tests/e2e/clients/requirements.txt, made if it is not there.
set -euo pipefail
. "$(dirname "$0")/env.sh"
packages=$checkout/tests/e2e/clients/requirements.txt
python=$BELAY_CACHE/python/$(sha256sum "$packages" | cut -c1-8)
alone python
if [ ! -f "$python/complete" ]; then
  say "installing Python clients: $(paste -sd ' ' "$packages")"
  rm -rf "$python"
  logged python-venv python3 -m venv "$python"
  logged python-pip "$python/bin/python" -m pip install --quiet --disable-pip-version-check -r "$packages"
  touch "$python/complete"
fi
echo "$python/bin/python"
