#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpack the kernel that Debian's meta-package PACKAGE stands for into DIRECTORY, unless it
# is there already.
# Nothing is installed: this host's own kernel and /boot stay as they are.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 PACKAGE DIRECTORY" >&2; exit 2; }
meta=$1 directory=$2

kernel_package() {
    LC_ALL=C apt-cache depends --important "$meta" 2>/dev/null |
        sed -n 's/^ *Depends: *\(linux-image-[0-9][^ ]*\)$/\1/p'
}
as_root=""
[ "$(id -u)" -eq 0 ] || as_root=sudo
package=$(kernel_package)
[ -n "$package" ] || { $as_root apt-get update -q; package=$(kernel_package); }
[ -n "$package" ] || { echo "$0: apt knows no $meta" >&2; exit 1; }
version="$package $(LC_ALL=C apt-cache show --no-all-versions "$package" | sed -n 's/^Version: //p')"

if [ "$(cat "$directory/version" 2>/dev/null)" != "$version" ]; then
    mkdir -p "$(dirname "$directory")"
    new=$(mktemp -d "$directory.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    (cd "$new" && apt-get download --quiet -o APT::Sandbox::User=root "$package" && dpkg-deb -x ./*.deb . && rm ./*.deb)
    echo "$version" >"$new/version"
    chmod 755 "$new"
    rm -rf "$directory"
    mv "$new" "$directory"
    trap - EXIT
fi
touch "$directory/version"    # make compares its time with this script's
echo "guest kernel: $version"
