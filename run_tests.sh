#!/usr/bin/env bash
# All tests: ./run_tests.sh [pytest's arguments]. Some minutes on two cores after the installation; no GPU needed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" -m pytest "$@"
