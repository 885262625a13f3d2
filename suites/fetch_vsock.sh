#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build the kernel's own vsock tests in DIRECTORY, unless they are there already: those of the
# kernel that harness/fetch_kernel.sh has left in KERNEL, from Debian's package of its source.
# The package is large (some 150 MB): of it only the tests and the headers that they need stay.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 KERNEL DIRECTORY" >&2; exit 2; }
read -r image version <"$1/version"
directory=$2
series=$(echo "$image" | sed -n 's/^linux-image-\([0-9]*\.[0-9]*\).*/\1/p')
[ -n "$series" ] || { echo "$0: no version in the name $image" >&2; exit 1; }
source=linux-source-$series

if [ "$(cat "$directory/version" 2>/dev/null)" != "$source $version" ]; then
    mkdir -p "$(dirname "$directory")"
    new=$(mktemp -d "$directory.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    (
        cd "$new"
        apt-get download --quiet -o APT::Sandbox::User=root "$source=$version"
        dpkg-deb --fsys-tarfile ./*.deb | tar -xO "./usr/src/$source.tar.xz" |
            tar -xJ --strip-components=1 "$source/tools/testing/vsock" "$source/tools/include"
        rm ./*.deb
        make --silent -C tools/testing/vsock
    )
    echo "$source $version" >"$new/version"
    chmod 755 "$new"
    rm -rf "$directory"
    mv "$new" "$directory"
    trap - EXIT
fi
touch "$directory/version"    # make compares its time with this script's
echo "vsock tests: $source $version"
