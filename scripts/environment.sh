# Sourced by the other scripts: makes .venv in the repository's root and installs the package into it when needed.
# shellcheck shell=bash
#
#   CONSISTORY_PYTHON       the Python to use (3.10 to 3.13; otherwise the first found, 3.11 preferred)
#   CONSISTORY_TORCH_INDEX  an extra package index for torch; empty for none

export RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
# Compute threads sleep while they wait for each other: spinning takes the core from the one that is waited for.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY-PASSIVE} KMP_BLOCKTIME=${KMP_BLOCKTIME-0}
export PIP_DISABLE_PIP_VERSION_CHECK=1

find_python() {
    local candidate
    for candidate in ${CONSISTORY_PYTHON:-python3.11 python3.12 python3.13 python3.10 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "No Python 3.10 to 3.13 found: install one, or name it in CONSISTORY_PYTHON." >&2
    return 1
}

make_venv() {
    local python
    python=$(find_python)
    echo "Making .venv with $("$python" --version)"
    rm -rf .venv
    if ! "$python" -m venv .venv >/dev/null 2>&1; then # Debian keeps the venv module in a package of its own
        rm -rf .venv
        local tools
        tools=$(mktemp -d)
        "$python" -m pip install --quiet --target "$tools" virtualenv
        PYTHONPATH=$tools "$python" -m virtualenv --quiet .venv
        rm -rf "$tools"
    fi
}

# Without an NVIDIA GPU the CPU build of torch saves gigabytes; it is used where its index answers.
torch_index() {
    local cpu=https://download.pytorch.org/whl/cpu
    if [[ -n ${CONSISTORY_TORCH_INDEX+set} ]]; then
        echo "$CONSISTORY_TORCH_INDEX"
    elif [[ $(uname -sm) == "Linux x86_64" ]] && ! command -v nvidia-smi >/dev/null &&
        .venv/bin/python -c "import urllib.request as r; r.urlopen('$cpu/torch/', timeout=10)" 2>/dev/null; then
        echo "$cpu"
    fi
}

# ensure_venv LEVEL: 0 the package with what reviews and exports need, 1 with test extras, 2 with development extras.
ensure_venv() {
    local level=$1 extras=("[review,export]" "[test]" "[dev]") state index
    .venv/bin/python -c "" 2>/dev/null || make_venv
    state=$({ pwd && .venv/bin/python --version && cat pyproject.toml constraints.txt; } | sha256sum | cut -d " " -f 1)
    local done_state="" done_level=-1
    if [[ -f .venv/installed ]]; then read -r done_state done_level <.venv/installed; fi
    if [[ $done_state == "$state" ]] && ((done_level >= level)); then return; fi
    echo "Installing consistory-ray${extras[level]} into .venv (some minutes the first time)"
    index=$(torch_index)
    .venv/bin/python -m pip install --quiet --retries 5 ${index:+--extra-index-url "$index"} \
        -c constraints.txt -e ".${extras[level]}"
    echo "$state $level" >.venv/installed
}
