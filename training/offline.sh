#!/bin/sh
# Train an encoder on a machine without network that has Python, torch and numpy, from a simulated sky:
#
#     make wheels                                                            (where there is network)
#     sh training/offline.sh training/nano/gpu.toml runs/nano [SECONDS]      (there)
#
# Stops after SECONDS, if given, and goes on where it stopped when given again.
set -eu
cd "$(dirname "$0")/.."
recipe=$1 out=$2 seconds=${3:-0} # 0: no limit
python=${PYTHON:-python3}
packages=build/offline
test -d $packages || $python -m pip install --quiet --no-index --no-deps --target $packages build/wheels/*.whl
export PYTHONPATH="$PWD:$PWD/$packages"
export recipe out python
timeout "$seconds" sh -euc '
    for stage in tokenizer encoder search-head; do
        "$python" -c "from training.commands import commands; commands()" $stage "$recipe" --out "$out"
    done'
