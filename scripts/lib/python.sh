# Sourced by environment.sh: `virtual_environment` makes .venv with pip in it, where there is none that can be used.

virtual_environment() {
    local python can_use='import pip, sys; sys.exit(sys.version_info < (3, 11))'
    "$root/.venv/bin/python" -c "$can_use" 2>/dev/null && return
    python=$(find_python)
    echo "Making .venv with $python" >&2
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv --clear "$root/.venv"
    elif "$python" -c 'import pip, venv' 2>/dev/null; then
        # Debian keeps ensurepip in python3-venv; the system's pip can put one into the environment.
        "$python" -m venv --clear --without-pip "$root/.venv"
        "$python" -m pip --python "$root/.venv/bin/python" install -qq --disable-pip-version-check pip >&2
    else
        echo "$python has neither ensurepip nor pip. On Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
}

find_python() {
    local python
    for python in ${TIDEGATE_PYTHON:+"$TIDEGATE_PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        command -v "$python"
        return
    done
    echo "Tidegate needs Python 3.11 or newer; python3 is: $(python3 --version 2>&1 || true)" >&2
    echo "Install one (Debian 12 and newer: apt install python3-venv), or name one: TIDEGATE_PYTHON=/path/to/python3" >&2
    exit 1
}
