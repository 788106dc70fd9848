# shellcheck shell=bash
# Sourced by the scripts in this folder: `prepare_venv` and `prepare_venv EXTRA` make the virtual
# environment .venv and install the project into it, unless that was done for the present
# pyproject.toml and constraints.txt.

set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

# Some machines set it. Without byte code each process compiles what it imports: torch and diffusers for three
# times as long.
unset PYTHONDONTWRITEBYTECODE

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 4
}

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    fail "found no Python 3.11 or newer; install one (python3 here is: $(python3 --version 2>&1 || true))"
}

# After the folder was moved or copied, the programs in .venv still belong to the old place.
venv_works() {
    .venv/bin/pip --version 2>/dev/null | grep -qF "from $PWD/.venv/"
}

make_venv() {
    local python
    python=$(find_python)
    "$python" -m venv --clear .venv ||
        fail "'$python -m venv' failed; on Debian and Ubuntu it needs the package python3-venv"
}

is_installed() {
    cat pyproject.toml constraints.txt | cmp -s - ".venv/installed-$1"
}

install_project() {
    local extra=$1 requirement=.
    [ "$extra" = base ] || requirement=".[$extra]"
    echo "Installing into .venv; the first time this downloads several gigabytes and takes some minutes." >&2
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e "$requirement" ||
        fail "pip could not install the project; its message is above"
    cat pyproject.toml constraints.txt | tee .venv/installed-base >".venv/installed-$extra"
}

prepare_venv() {
    local extra=${1:-base}
    venv_works || make_venv
    is_installed "$extra" || install_project "$extra"
    PATH="$PWD/.venv/bin:$PATH"
}
