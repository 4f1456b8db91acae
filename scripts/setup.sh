#!/bin/sh
# Installs the Debian packages that the tests and the demo use, when missing.
# Usage: scripts/setup.sh [demo|test|soak|bench]   (default: test; test and soak include what is before them, bench includes test)
set -eu

what=${1:-test}
# command:package, or file:package
demo="curl:curl"
test="$demo gcc:gcc swtpm:swtpm swtpm_setup:swtpm-tools tpm2_getcap:tpm2-tools mosquitto:mosquitto mosquitto_pub:mosquitto-clients
openssl:openssl zbarimg:zbar-tools strace:strace ip:iproute2 systemd-analyze:systemd socat:socat
qemu-arm-static:qemu-user-static qemu-x86_64:qemu-user faketime:faketime
systemd-nspawn:systemd-container init:systemd-sysv dbus-daemon:dbus
spin:spin maude:maude"
soak="$test qemu-system-arm:qemu-system-arm mkfs.ext4:e2fsprogs"
plugins=/usr/lib/python3/dist-packages/twisted/plugins
bench="$test wormhole:magic-wormhole twistd3:python3-twisted $plugins/magic_wormhole_mailbox.py:python3-magic-wormhole-mailbox-server
$plugins/magic_wormhole_transit_relay.py:magic-wormhole-transit-relay"
case $what in
demo) wanted=$demo; [ "${HSM:-file}" = tpm ] && wanted="$demo swtpm:swtpm" ;;
test) wanted=$test ;;
soak) wanted=$soak; "$(dirname "$0")/kernel.sh" ;;
bench) wanted=$bench ;;
*) echo "setup.sh: unknown set '$what'; choose demo, test, soak or bench" >&2; exit 2 ;;
esac

missing=
for pair in $wanted; do
	[ -e "${pair%%:*}" ] || PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "setup.sh: missing:$missing" >&2
	echo "  next: sudo apt-get install -y --no-install-recommends$missing" >&2
	exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "setup.sh: missing:$missing, and this is not Debian; install them and run again" >&2
	exit 1
fi
echo "setup.sh: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null; }
# Tests start brokers of their own; the one that Debian starts on install is not wanted.
case "$missing " in *" mosquitto "*) systemctl disable --now mosquitto >/dev/null 2>&1 || true ;; esac
