#!/bin/sh
# Builds the agent for every board that we name, or for those given as
# arguments, static, into bin/ or $OUT. With "size": also compares with the limits
# (9 MiB, mipsle 10) and fails above them.
set -eu
cd "$(dirname "$0")/.."
size=
[ "${1:-}" != size ] || { size=1; shift; }
out=${OUT:-bin}
version=$(git describe --always --dirty --tags 2>/dev/null || echo unknown)
built=$(git log -1 --format=%cI 2>/dev/null || true)
flags="-s -w -X github.com/kagimori/kagimori/transport/control/verb.Version=$version -X main.built=$built"
# Inlining costs the agent 0.8 MiB and buys nothing outside the cryptography; on
# amd64 not even there, since that is assembly. Functions on whole cache lines cost
# amd64 0.2 MiB more.
small="-gcflags=all=-l"
fast=
for p in crypto/internal/fips140/aes crypto/internal/fips140/bigmod crypto/internal/fips140/edwards25519 crypto/internal/fips140/mlkem \
	crypto/internal/fips140/nistec crypto/internal/fips140/sha256 crypto/internal/fips140/sha3 crypto/internal/fips140/sha512 \
	golang.org/x/crypto filippo.io; do
	fast="$fast -gcflags=$p/...="
done
slim=$(scripts/slim.sh)
failed=0
found=0
# name limit-in-MiB GOOS-style settings
while read -r name limit settings; do
	[ $# = 0 ] || case " $* " in *" $name "*) ;; *) continue ;; esac
	found=$((found + 1))
	program=$out/kagimori-linux-$name
	inline=$fast
	align=4
	[ "$name" != amd64 ] || inline= align=1
	env CGO_ENABLED=0 GOOS=linux $settings go build -trimpath $slim $small $inline -ldflags "$flags -funcalign=$align" -o "$program" ./agent/cmd/kagimori
	bytes=$(wc -c <"$program")
	printf '%-26s %9d bytes  %5s MiB' "$program" "$bytes" "$(awk "BEGIN {printf \"%.2f\", $bytes/1048576}")"
	if [ "$size" ]; then
		printf '  limit %2d' "$limit"
		[ "$bytes" -le $((limit * 1048576)) ] || { printf '  TOO LARGE'; failed=1; }
	fi
	echo
done <<-END
	armv7   9 GOARCH=arm GOARM=7
	armv6   9 GOARCH=arm GOARM=6
	arm64   9 GOARCH=arm64
	riscv64 9 GOARCH=riscv64
	amd64   9 GOARCH=amd64
	mipsle 10 GOARCH=mipsle GOMIPS=softfloat
END
if [ $# != 0 ] && [ "$found" != $# ]; then
	echo "cross.sh: no such board among: $*" >&2
	exit 2
fi
exit $failed
