#!/bin/sh
# Fetches Debian's kernel for 32-bit ARM boards (armmp) into bin/board: vmlinuz and
# the folder modules. `make soak` boots it; nothing of it is installed, and no
# foreign architecture is added to this machine.
set -eu
cd "$(dirname "$0")/.."
[ ! -e bin/board/vmlinuz ] || exit 0
command -v apt-get >/dev/null 2>&1 || { echo "kernel.sh: this is not Debian; put vmlinuz and modules/ of an armmp kernel into bin/board" >&2; exit 1; }
mkdir -p bin
work=$(mktemp -d "$PWD/bin/board.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/tree"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${MIRROR:-http://deb.debian.org/debian} bookworm main" >"$work/sources.list"
apt() {
	tool=$1; shift
	"$tool" -qq -o APT::Architecture=armhf -o APT::Architectures=armhf -o Dir::State="$work/state" -o Dir::State::status=/dev/null \
		-o Dir::Cache="$work/cache" -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User=root "$@"
}
apt apt-get update
package=$(apt apt-cache depends linux-image-armmp | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p')
echo "kernel.sh: fetching $package"
(cd "$work" && apt apt-get download "$package")
dpkg-deb --extract "$work/$package"_*.deb "$work/tree"
mkdir "$work/board"
cp "$work"/tree/boot/vmlinuz-* "$work/board/vmlinuz"
mv "$work"/tree/lib/modules/*/kernel "$work/board/modules"
rm -rf bin/board
mv "$work/board" bin/board
