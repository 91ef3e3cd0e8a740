#!/usr/bin/env bash
# Unpacks Debian's Python for aarch64 into a folder, for tests under emulation; installs nothing and needs no root.
# Usage: tools/aarch64_root.sh FOLDER     (on Debian or Ubuntu: apt-get and dpkg)
set -euo pipefail
folder=$(mkdir -p "${1:?give the folder to fill}" && cd "$1" && pwd)
state="$folder/apt"
mkdir -p "$state/lists/partial" "$state/cache" "$state/packages" "$folder/root"
options=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$state/lists"
         -o Dir::State::status=/dev/null -o Dir::Cache="$state/cache" -o Debug::NoLocking=1)
python=python$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
packages=("$python-minimal" "lib$python-minimal" "lib$python-stdlib" libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3
          libffi8 libbz2-1.0 liblzma5)
apt-get "${options[@]}" -qq update
(cd "$state/packages" && apt-get "${options[@]}" -qq download "${packages[@]}")
for package in "$state"/packages/*.deb; do dpkg -x "$package" "$folder/root"; done
rm -r "$state"
echo "$folder/root"
