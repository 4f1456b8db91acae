#!/bin/sh
# Prints a -modfile flag for `go build` with which three libraries link less into
# the agent, half a MiB in all. What is built is their own modules as they were
# downloaded and checked, but for what no program here uses:
#
#   paho   its ways to connect (we hand it a connection), and with them net/http
#          and SOCKS proxies
#   cobra  one regular expression, and with it regexp; templates; completion for
#          PowerShell, which no terminal has
#   crypto assembly for amd64 of what has little to do here: a passphrase, the
#          items of a key copy. Other boards run the same code in Go anyway
#
# If a later release no longer looks as expected here, this script or the build
# fails; the stories run what is built so.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
out=bin/slim
mkdir -p $out
work=$(mktemp -d "$PWD/$out/new.XXXXXX") # under a name of its own first: two builds may run at once
trap 'rm -rf "$work"' EXIT
cp go.mod "$work/go.mod.main"

# take MODULE NAME DIR...: copies these directories of a module to $work/NAME
take() {
	module=$1 name=$2
	shift 2
	$go mod download "$module"
	from=$($go list -m -f '{{.Dir}}' "$module")
	for dir; do
		mkdir -p "$work/$name/$dir"
		for f in "$from/$dir"/*.go "$from/$dir"/*.s; do
			case $f in *_test.go | *\**) ;; *) cat "$f" >"$work/$name/$dir/${f##*/}" ;; esac
		done
	done
	cat "$from/go.mod" >"$work/$name/go.mod"
}

# expect NAME FILE PATTERN: the file must have what is to be changed
expect() {
	grep -q "$3" "$work/$1/$2" || { echo "slim.sh: $1's $2 is not what this script knows; look at its new release" >&2; exit 1; }
}

# put NAME MODULE: gives it the name of its content, and tells go.mod
put() {
	sum=$(cd "$work/$1" && find . -type f | LC_ALL=C sort | xargs cat | sha256sum | cut -c1-16)
	[ -d "$out/$1-$sum" ] || mv -T "$work/$1" "$out/$1-$sum" 2>/dev/null || [ -d "$out/$1-$sum" ]
	echo "replace $2 => ./$out/$1-$sum" >>"$work/go.mod.main"
}

take github.com/eclipse/paho.mqtt.golang paho . packets
for f in options.go options_reader.go; do
	expect paho $f 'http\.Header'
	sed -i -e '/^\t"net\/http"$/d' -e 's/http\.Header/map[string][]string/g' "$work/paho/$f"
done
expect paho netconn.go 'func openConnection(uri \*url.URL, tlsc \*tls.Config, timeout time.Duration, headers http.Header'
cat >"$work/paho/netconn.go" <<'END'
package mqtt

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"time"
)

func openConnection(*url.URL, *tls.Config, time.Duration, map[string][]string, *WebsocketOptions, *net.Dialer) (net.Conn, error) {
	return nil, errors.New("the MQTT client of this program is handed its connections")
}
END
cat >"$work/paho/websocket.go" <<'END'
package mqtt

// WebsocketOptions are not used.
type WebsocketOptions struct{}
END
put paho github.com/eclipse/paho.mqtt.golang

take github.com/spf13/cobra cobra .
expect cobra completions.go 'var configEnvVarPrefixSubstRegexp = regexp.MustCompile(`\[^A-Z0-9_\]`)'
sed -i -e '/^\t"regexp"$/d' -e 's/^var configEnvVarPrefixSubstRegexp = .*/var configEnvVarPrefixSubstRegexp notInNames/' "$work/cobra/completions.go"
expect cobra cobra.go '^func tmpl(text string) \*tmplFunc {$'
sed -i -e '/^\t"text\/template"$/d' -e '/^var templateFuncs/,/^}/d' -e '/^func AddTemplateFunc/,/^}/d' -e '/^func tmpl(/,/^}/d' "$work/cobra/cobra.go"
cat >"$work/cobra/names.go" <<'END'
package cobra

import (
	"errors"
	"io"
	"strings"
)

func tmpl(text string) *tmplFunc {
	return &tmplFunc{text, func(io.Writer, interface{}) error { return errors.New("this program has no templates") }}
}

type notInNames struct{}

// ReplaceAllString replaces what is not in A-Z, 0-9 and _.
func (notInNames) ReplaceAllString(s, by string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '_' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' {
			b.WriteRune(r)
		} else {
			b.WriteString(by)
		}
	}
	return b.String()
}
END
expect cobra completions.go 'completionCmd.AddCommand(bash, zsh, fish, powershell)'
sed -i -e 's/completionCmd.AddCommand(bash, zsh, fish, powershell)/completionCmd.AddCommand(bash, zsh, fish)/' "$work/cobra/completions.go"
expect cobra powershell_completions.go '^func (c \*Command) GenPowerShellCompletionWithDesc(w io.Writer) error'
cat >"$work/cobra/powershell_completions.go" <<'END'
package cobra

import (
	"errors"
	"io"
)

var errNoPowerShell = errors.New("this program has no completion for PowerShell")

func (c *Command) GenPowerShellCompletion(io.Writer) error         { return errNoPowerShell }
func (c *Command) GenPowerShellCompletionWithDesc(io.Writer) error { return errNoPowerShell }
END
put cobra github.com/spf13/cobra

take golang.org/x/crypto crypto argon2 blake2b chacha20 chacha20poly1305 cryptobyte cryptobyte/asn1 internal/alias internal/poly1305
for f in argon2/blamka_ref.go blake2b/blake2b_ref.go chacha20poly1305/chacha20poly1305_noasm.go; do
	expect crypto $f '^//go:build .*!amd64'
	sed -i -e '/^\/\/go:build/s/!amd64/amd64 || !amd64/' "$work/crypto/$f"
done
rm "$work"/crypto/argon2/*_amd64.* "$work"/crypto/blake2b/*_amd64.* "$work"/crypto/chacha20poly1305/*_amd64.*
put crypto golang.org/x/crypto

take github.com/google/go-tpm gotpm tpm2 tpm2/transport legacy/tpm2 tpmutil
expect gotpm tpm2/errors.go '"%s (%v %d): %s", desc.name, e.subject, e.index, desc.description'
sed -i -e '/^\tdescription string$/d' -e '/^\t\tdescription: /d' \
	-e 's/"%s (%v %d): %s", desc.name, e.subject, e.index, desc.description/"%s (%v %d)", desc.name, e.subject, e.index/' \
	-e 's/fmt.Sprintf("%s: %s", desc.name, desc.description)/desc.name/' "$work/gotpm/tpm2/errors.go"
put gotpm github.com/google/go-tpm

cp go.sum "$out/go.sum.$$"
mv "$work/go.mod.main" "$out/go.mod.$$"
for f in go.mod go.sum; do mv "$out/$f.$$" "$out/$f"; done
echo "-modfile=$out/go.mod"
