# Sourced by run_all.sh and run_tests.sh: an environment with requirements.txt in it. Sets $python.
# About 9 GB on disk; some minutes the first time, nothing afterwards.
cd "$(dirname "${BASH_SOURCE[0]}")"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11" >&2
  return 1
}

if [ "${SKIP_INSTALL:-0}" = 1 ]; then
  python=$(PYTHON=${PYTHON:-python python3} find_python) # the active one holds the packages
elif [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
  python=$(PYTHON=${PYTHON:-python} find_python)
else
  [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
  python=.venv/bin/python
fi

if [ "${SKIP_INSTALL:-0}" != 1 ]; then
  stamp="$("$python" -c 'import sys; print(sys.prefix)')/.installed-requirements"
  wanted=$("$python" -c 'import hashlib, sys; print(sys.version, hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest())')
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing requirements.txt into $(dirname "$stamp") (about 9 GB, once)"
    "$python" -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.txt
    echo "$wanted" > "$stamp"
  fi
fi
