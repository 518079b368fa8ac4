# Sourced by the scripts: `environment runtime|bench|tests` makes .venv hold what requirements/$1.txt pins, and the
# command `tidegate`, where it does not yet. It speaks on stderr, so that a script's output stays its own.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/lib/python.sh"

environment() {
    local stamp=$root/.venv/tidegate.stamp state
    state="$(cd "$root" && cat setup.cfg pyproject.toml requirements/*.txt | cksum) $root"
    [[ -x $root/.venv/bin/python ]] && grep -qsxF "$1 $state" "$stamp" && return
    virtual_environment
    echo "Installing what requirements/$1.txt pins into .venv" >&2
    # Two steps: pip refuses a project without a hash beside pinned files with hashes.
    in_venv --require-hashes -r "$root/requirements/build.txt" -r "$root/requirements/$1.txt"
    in_venv --no-deps --no-build-isolation --no-index --editable "$root"
    # Lines of an older state go: what they promise may have just been replaced.
    {
        grep -sF " $state" "$stamp" || true
        echo "$1 $state"
        [[ $1 == runtime ]] || echo "runtime $state"
        [[ $1 != tests ]] || echo "bench $state"
    } >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

in_venv() {
    "$root/.venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input "$@" >&2
}
