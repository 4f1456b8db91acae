package stories

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A tap relays connections and keeps every byte that passes, both ways.
type tap struct {
	name string
	addr string // where clients connect
	seen lockedBuffer
}

// newTap listens on network ("tcp" or "unix") at addr and relays to target.
func newTap(t *testing.T, name, network, addr, target string) *tap {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{name: name, addr: l.Addr().String()}
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial(network, target)
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			all.Go(func() { p.copy(out, in) })
			all.Go(func() { p.copy(in, out) })
		}
	})
	return p
}

func (p *tap) copy(to, from net.Conn) {
	io.Copy(io.MultiWriter(&p.seen, to), from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// A needle is a secret to look for, in every form that a careless program
// might write it.
type needle struct {
	what  string
	forms [][]byte
}

func newNeedle(what string, secret []byte) needle {
	n := needle{what: what, forms: [][]byte{
		secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret))),
	}}
	// Base64 of the bytes at each of the three positions in a longer text, less
	// the characters that depend on the neighbours.
	for shift := range 3 {
		padded := append(make([]byte, shift), secret...)
		for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := e.EncodeToString(padded)
			lead, tail := (shift*8+5)/6, 0
			if len(padded)%3 != 0 {
				tail = 1
			}
			n.forms = append(n.forms, []byte(text[lead:len(text)-tail]))
		}
	}
	return n
}

// digits adds the ways in which people group a code.
func newCodeNeedle(what, code string) needle {
	var plain string
	for _, c := range code {
		if c >= '0' && c <= '9' {
			plain += string(c)
		}
	}
	n := newNeedle(what, []byte(plain))
	for _, sep := range []string{" ", "-"} {
		n.forms = append(n.forms, []byte(plain[:3]+sep+plain[3:6]+sep+plain[6:]))
	}
	return n
}

func (n needle) in(b []byte) bool {
	for _, f := range n.forms {
		if bytes.Contains(b, f) {
			return true
		}
	}
	return false
}

// files reads every regular file below dir.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// The instrument first: it finds a secret in all the forms and places that it claims.
func TestNeedleIsFound(t *testing.T) {
	secret := []byte("\x00\xffkey material of this test\x80\x81")
	n := newNeedle("secret", secret)
	for before := range 7 {
		for after := range 4 {
			text := append(append(bytes.Repeat([]byte{0xa5}, before), secret...), bytes.Repeat([]byte{0x5a}, after)...)
			for name, form := range map[string]string{
				"raw": string(text), "hex": hex.EncodeToString(text), "HEX": strings.ToUpper(hex.EncodeToString(text)),
				"base64": base64.StdEncoding.EncodeToString(text), "base64url": base64.RawURLEncoding.EncodeToString(text),
			} {
				if !n.in([]byte(form)) {
					t.Errorf("%s, %d bytes before and %d after: not found", name, before, after)
				}
			}
		}
	}
	if n.in(bytes.Repeat([]byte("key material of that test"), 9)) {
		t.Error("found where it is not")
	}
	code := newCodeNeedle("code", "123 456 789")
	for _, text := range []string{`{"code":"123456789"}`, "code 123 456 789", "123-456-789"} {
		if !code.in([]byte(text)) {
			t.Errorf("%q: not found", text)
		}
	}
}
