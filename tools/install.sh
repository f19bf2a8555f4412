#!/usr/bin/env bash
# Make the environment for `make install`: from wheels only, with pinned versions.
# Reads PYTHON (empty: look for one), VENV and DISK_GB.
set -euo pipefail
cd "$(dirname "$0")/.."

stop() {
    echo >&2
    printf '%s\n' "$@" >&2
    exit 1
}

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
        2>/dev/null
}

say() { printf '\n[%s] %s\n' "$(date +%T)" "$*"; }

say "1/4 Looking at Python and the disk."
if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || stop "PYTHON=$PYTHON is not a Python 3.10, 3.11 or 3.12." \
        "Name one that is: make install PYTHON=/path/to/python3.12"
else
    for candidate in python3.11 python3.12 python3.10 python3; do
        if fits "$candidate"; then
            PYTHON=$candidate
            break
        fi
    done
    [ -n "${PYTHON:-}" ] || stop "No Python 3.10, 3.11 or 3.12 was found." \
        "Debian 12:    apt install python3 python3-venv" \
        "Ubuntu 22/24: apt install python3 python3-venv" \
        "elsewhere, install one of them (python.org, pyenv, uv, conda), then:" \
        "              make install PYTHON=/path/to/python3.12"
fi
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || stop \
    "Python $version cannot make environments: its venv module is not installed." \
    "Debian, Ubuntu: apt install python$version-venv"

# Only what this script made is ever removed: it leaves its mark at once.
if [ -n "$(ls -A "$VENV" 2>/dev/null)" ] && [ ! -e "$VENV/.made-by-kdeov" ]; then
    stop "$VENV is there already, and was not made by this command." \
        "Choose another place: make install VENV=/path/to/new, or remove it yourself."
fi
mkdir -p "$VENV"
free=$(($(df -Pk "$VENV" | awk 'NR == 2 {print $4}') / 1024 / 1024))
[ "$free" -ge "$DISK_GB" ] || stop \
    "The disk of $VENV has $free GB free; the installation needs $DISK_GB GB." \
    "Free some space, or put it on another disk: make install VENV=/other/disk/venv"
echo "Python $version ($("$PYTHON" -c 'import sys; print(sys.executable)')), $free GB free."

say "2/4 Making $VENV from nothing (seconds)."
rm -rf "$VENV"
mkdir -p "$VENV"
touch "$VENV/.made-by-kdeov"
"$PYTHON" -m venv "$VENV"
trap 'stop "The installation did not finish; the reason stands above." \
    "If it was the network or the disk, mend it and run the same command again."' ERR

count=$(grep -c '==' constraints.txt)
say "3/4 Downloading and installing about $count wheels, 3 GB, most of it torch (2 to 5 minutes)."
# The list is complete, so nothing is resolved. Downloads pass through the same disk,
# because /tmp is small on many machines.
mkdir "$VENV/tmp"
TMPDIR=$(cd "$VENV/tmp" && pwd) "$VENV/bin/python" -m pip install \
    --disable-pip-version-check --no-deps --only-binary :all: -r constraints.txt
rm -rf "$VENV/tmp"

say "4/4 Installing this package and trying it (half a minute)."
"$VENV/bin/python" -m pip install --disable-pip-version-check --quiet \
    --no-deps --no-build-isolation --editable .
"$VENV/bin/python" -c '
import kdeov_mm, mmdet.models, mmyolo.models, torch, torchvision
print(f"kdeov_mm {kdeov_mm.__version__}, torch {torch.__version__}, "
      f"torchvision {torchvision.__version__}; worked around: "
      + ", ".join(kdeov_mm.compat.apply()))'
say "Installed in $SECONDS seconds, $(du -sh "$VENV" | cut -f1)."
