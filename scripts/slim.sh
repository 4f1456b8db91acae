#!/bin/sh
# Prints a -modfile flag for `go build` that leaves net/http out of the MQTT
# client. The client names http.Header in its options, for websockets that no
# program here has (transport/mqtt/nowebsocket), and with that name comes all of
# net/http: 0.4 MiB on every terminal. What is built instead is the client's own
# module as it was downloaded and checked, but for that name. If a later release
# no longer looks as expected here, this script or the build fails.
set -eu
cd "$(dirname "$0")/.."
out=bin/slim
mkdir -p $out
go=${GO:-go}
module=github.com/eclipse/paho.mqtt.golang
$go mod download $module
from=$($go list -m -f '{{.Dir}}' $module)
work=$(mktemp -d "$PWD/$out/new.XXXXXX") # under a name of its own first: two builds may run at once
trap 'rm -rf "$work"' EXIT
mkdir "$work/packets"
(cd "$from" && for f in go.mod *.go packets/*.go; do
	case $f in *_test.go | websocket.go) ;; *) cat "$f" >"$work/$f" ;; esac
done)
for f in netconn.go options.go options_reader.go; do
	grep -q 'http\.Header' "$work/$f" || { echo "slim.sh: $f of the MQTT client is not what this script knows; look at its new release" >&2; exit 1; }
	sed -i -e '/^\t"net\/http"$/d' -e 's/http\.Header/map[string][]string/g' "$work/$f"
done
cat >"$work/websocket.go" <<'END'
package mqtt

import (
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// WebsocketOptions are not used.
type WebsocketOptions struct{}

// NewWebsocket fails: websockets are left out of this program.
func NewWebsocket(string, *tls.Config, time.Duration, map[string][]string, *WebsocketOptions) (net.Conn, error) {
	return nil, errors.New("websockets are left out of this program: use a tls:// or tcp:// address")
}
END
sum=$(cd "$work" && cat *.go packets/*.go go.mod | sha256sum | cut -c1-16)
[ -d "$out/paho-$sum" ] || mv -T "$work" "$out/paho-$sum" 2>/dev/null || [ -d "$out/paho-$sum" ]
{ cat go.mod; echo "replace $module => ./$out/paho-$sum"; } >"$out/go.mod.$$"
cp go.sum "$out/go.sum.$$"
for f in go.mod go.sum; do mv "$out/$f.$$" "$out/$f"; done
echo "-modfile=$out/go.mod"
