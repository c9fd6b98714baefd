#!/usr/bin/env bash
# From images and prompts to a checked submission, in one command.
#
#   machine  Linux with Python 3.11 to 3.13; a CUDA GPU is used when there is one
#   time     about 10 minutes on two CPU cores for the default, the embedded demo; plus installation
#   disk     about 9 GB for the environment, 1.2 GB for input/demo and output/
#
# 01_dedup  02_train_model_a  03_cuml_knn_model_b  04_ensemble_oof  05_submit
# ./run_all.sh --help lists the options and the other commands (predict, pack, report, status ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ "${1:-}" == -* && " $* " =~ " --help "|" -h " ]]; then
  exec "${PYTHON:-python3}" -m src.runner.cli --help # needs no package, so no installation
fi

source ./setup.sh
exec "$python" -m src.runner.cli "$@"
