#!/usr/bin/env bash
# The story of Kagimori, told with the commands that people type and checked at
# every step. Usage: scripts/demo.sh   (HSM=tpm: one emulated TPM a terminal;
# BIN: where the programs are; DIR: where to work, emptied before and after)
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-$PWD/bin}
dir=${DIR:-$PWD/demo}
hsm=${HSM:-file}
case $hsm in file | tpm) ;; *) echo "demo: HSM=$hsm is unknown; choose file or tpm" >&2; exit 2 ;; esac

rm -rf "$dir" && mkdir -m 700 "$dir" && cd "$dir"
started=$(date +%s)
step="0. preparations"
pids=()
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' plain=$'\e[0m'; else bold= dim= red= plain=; fi

stop_all() {
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
	pids=()
}
finish() {
	code=$?
	trap - EXIT INT TERM
	stop_all
	if [ $code = 0 ]; then cd / && rm -rf "$dir"; exit 0; fi
	echo "${red}demo: failed in step $step${plain}" >&2
	[ ! -s last.err ] || sed 's/^/  /' last.err >&2
	echo "  the logs are in $PWD: $(ls -- *.log 2>/dev/null | tr '\n' ' ')" >&2
	exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

step() { step=$1; printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
say() { printf '  %s\n' "$*"; }
fail() { echo "$*" >last.err; exit 1; }
want() { [[ $1 == *"$2"* ]] || fail "expected \"$2\" in: $1"; }

# at MACHINE COMMAND...: what a person types there, shown with its answer.
# Standard input is passed on; $out keeps the answer.
at() {
	local machine=$1; shift
	printf '  %s%s$%s %s\n' "$dim" "$machine" "$plain" "$*"
	local code=0
	quietly "$machine" "$@" || code=$?
	[ -z "$out" ] || sed 's/^/    /' <<<"$out"
	return $code
}
quietly() {
	local machine=$1; shift
	out=$(KAGIMORI_SOCKET=$machine/control.sock KAGIMORI_GATE_SOCKET=$machine/control.sock KAGIMORI_SERVER_SOCKET=$machine/control.sock PATH=$bin:$PATH "$@" 2>&1)
}
# refused EXIT MACHINE COMMAND...: the same for what must not work.
refused() {
	local want=$1 code=0; shift
	at "$@" || code=$?
	[ "$code" = "$want" ] || fail "exit code $code, expected $want: $out"
}
daemon() { # MACHINE PROGRAM: starts the daemon as systemd would
	printf '  %s%s$%s systemctl start %s\n' "$dim" "$1" "$plain" "$2"
	"$bin/$2" run --config "$1/$2.toml" >>"$1.log" 2>&1 &
	pids+=($!)
	last=$!
	until_true "$2 of $1 answers" test -S "$1/control.sock"
}
stop() { kill "$1"; wait "$1" || true; pids=($(printf '%s\n' "${pids[@]}" | grep -vx "$1")); }
until_true() { # WHAT COMMAND...
	local what=$1 i; shift
	for i in $(seq 300); do
		if "$@" >/dev/null 2>&1; then return; fi
		read -rt 0.1 <> <(:) || true
	done
	fail "waited 30 s: $what${out:+; last seen: $out}"
}
# shows MACHINE WORDS COMMAND...: the answer of a query has these words.
shows() { quietly "$1" "${@:3}" && [[ $out == *"$2"* ]]; }
# free_ports NAME...: sets each to a TCP port that nobody listens on, below the
# range that the kernel hands out to clients.
free_ports() {
	local name port=$((20000 + RANDOM % 12000))
	for name; do
		while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
		printf -v "$name" %s "$port"
		port=$((port + 1))
	done
}

# machine NAME: a box with a directory, and with a chip of its own for HSM=tpm.
machine() {
	mkdir "$1"
	key="kind = \"file\""
	if [ "$hsm" = tpm ] && [ "${2:-}" = terminal ]; then
		mkdir "$1/tpm"
		swtpm socket --tpm2 --server type=unixio,path="$1/tpm.sock" --ctrl type=unixio,path="$1/tpm.sock.ctrl" \
			--flags not-need-init,startup-clear --tpmstate dir="$1/tpm" >>"$1.log" 2>&1 &
		pids+=($!)
		until_true "the chip of $1 answers" test -S "$1/tpm.sock"
		key="kind = \"tpm\"
path = \"$1/tpm.sock\""
	fi
}
# settings MACHINE PROGRAM <<END: the configuration that differs from the defaults.
settings() { { printf 'state_dir = "%s/state"\n[hsm]\n%s\n[control]\nsocket = "%s/control.sock"\n' "$1" "$key" "$1"; cat; } >"$1/$2.toml"; }

free_ports mqtt http gate maps copy relay1 relay2

say "All machines are directories of one here: each command finds its daemon through \$KAGIMORI_SOCKET and the like,"
say "and systemctl stands for starting the program."

step "1. A management server: CA, inventory and MQTT broker"
machine server
settings server kagimori-server <<-END
	[mqtt]
	listen = "127.0.0.1:$mqtt"
	[http]
	listen = "127.0.0.1:$http"
END
at server kagimori-server init --config server/kagimori-server.toml --deployment demo --address "127.0.0.1:$mqtt" --http "127.0.0.1:$http"
daemon server kagimori-server
server=$last
at server curl -sS "http://127.0.0.1:$http/healthz"
want "$out" ok

step "2. A gate in front of the service \"maps\", which knows no cryptography"
"$bin/upstream" "127.0.0.1:$maps" >>maps.log 2>&1 &
pids+=($!)
at server kagimori-server gate add maps --dns maps.test --endpoint "127.0.0.1:$gate" --out gate.bundle
passphrase=$(sed -n 's/^passphrase *//p' <<<"$out")
machine maps
settings maps kagimori-gate <<-END
	[gate]
	listen = "127.0.0.1:$gate"
	upstream = "http://127.0.0.1:$maps"
END
daemon maps kagimori-gate
say "(the passphrase is typed when the verb asks for it)"
at maps kagimori-gate provision gate.bundle <<<"$passphrase"
until_true "the gate serves" shows maps '"open": true' kagimori-gate status --json

step "3. A terminal, nav-001: it enrolls, and each side proves itself to the other"
at server kagimori-server terminal add nav-001 --out nav-001.bundle
passphrase=$(sed -n 's/^passphrase *//p' <<<"$out")
machine nav-001 terminal
settings nav-001 kagimori <<-END
	[keycopy]
	listen = "127.0.0.1:$copy"
	[[relay]]
	service = "maps"
	listen = "127.0.0.1:$relay1"
END
daemon nav-001 kagimori
at nav-001 kagimori provision nav-001.bundle <<<"$passphrase"
until_true "nav-001 is connected" shows nav-001 '"state": "connected"' kagimori status --json
at nav-001 kagimori status
say "It has no credential for maps yet, so its relay refuses, and says why:"
at nav-001 curl -sS "http://127.0.0.1:$relay1/tokyo"
want "$out" "no usable credential"

step "4. A credential: the key is made on the terminal, the server signs"
at server kagimori-server credential issue nav-001 --service maps --wait
say "An unchanged curl reaches the service through the relay and the gate:"
at nav-001 curl -sS "http://127.0.0.1:$relay1/tokyo"
want "$out" "map tile /tokyo for nav-001"

step "5. nav-001 is replaced by nav-002, with the server switched off"
at server kagimori-server spare add --group default --out spare.bundle
passphrase=$(sed -n 's/^passphrase *//p' <<<"$out")
machine nav-002 terminal
settings nav-002 kagimori <<-END
	[[relay]]
	service = "maps"
	listen = "127.0.0.1:$relay2"
END
daemon nav-002 kagimori
at nav-002 kagimori provision spare.bundle <<<"$passphrase"
printf '  %sserver$%s systemctl stop kagimori-server\n' "$dim" "$plain"
stop "$server"

offer() { # starts an offer on nav-001 and waits for its code
	printf '  %snav-001$%s kagimori keycopy offer\n' "$dim" "$plain"
	: >offer.out
	KAGIMORI_SOCKET=nav-001/control.sock "$bin/kagimori" keycopy offer >offer.out 2>&1 &
	offer=$!
	pids+=($offer)
	until_true "the offer shows a code" grep -q 'code' offer.out
	until_true "the offer shows a code" grep -qE '[0-9]{3} [0-9]{3} [0-9]{3}' offer.out
	code=$(grep -oE '[0-9]{3} [0-9]{3} [0-9]{3}' offer.out | head -n 1)
}
offer
sed 's/^/    /' offer.out
say "(nine digits are read aloud, and typed at the new terminal)"
at nav-002 kagimori keycopy fetch "127.0.0.1:$copy" <<<"$code"
want "$out" installed
wait "$offer" || fail "the offer did not end well: $(cat offer.out)"
say "and nav-001 says:"
tail -n 3 offer.out | sed 's/^/    /'
want "$(cat offer.out)" "still holds it"

step "6. The successor reaches the service with the copied key; nothing was changed there"
at nav-002 curl -sS "http://127.0.0.1:$relay2/tokyo"
want "$out" "map tile /tokyo for nav-001"
say "The server comes back; nav-002 gets a name, enrolls and reports what it holds, with proof:"
daemon server kagimori-server
at server kagimori-server terminal add nav-002 --out nav-002.bundle
passphrase=$(sed -n 's/^passphrase *//p' <<<"$out")
at nav-002 kagimori provision nav-002.bundle <<<"$passphrase"
until_true "the server knows both holders" shows server "nav-002" kagimori-server credential list
at server kagimori-server credential list
id=$(grep -oE 'cr-[a-z0-9]+ .* nav-00' <<<"$out" | grep -oE '^cr-[a-z0-9]+')
quietly server kagimori-server credential show "$id" --json
for part in '"terminal": "nav-001"' '"terminal": "nav-002"' '"operation": "copy"' '"operated": "20' '"expires": "20' '"in_force": true'; do want "$out" "$part"; done

step "7. Wrong codes, and a terminal that is taken out of service"
offer
wrong="123 456 786" # with its check digit: a mistyped one would not even be sent
[ "$wrong" != "$code" ] || wrong="876 543 217"
for left in 2 1 0; do
	refused 4 nav-002 kagimori keycopy fetch "127.0.0.1:$copy" <<<"$wrong"
done
wait "$offer" && fail "the offer outlived three wrong codes"
tail -n 2 offer.out | sed 's/^/    /'
want "$(cat offer.out)" "the code is destroyed"
at server kagimori-server terminal remove nav-001
until_true "nav-001 was disconnected" shows nav-001 '"state": "refused"' kagimori status --json
at server kagimori-server terminal show nav-001
want "$out" removed

printf '\n%sDone in %s s: enrolled, replaced, and the successor reaches the service.%s\n' "$bold" "$(($(date +%s) - started))" "$plain"
