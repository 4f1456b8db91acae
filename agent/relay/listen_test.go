package relay

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

func TestParseListen(t *testing.T) {
	for _, c := range []struct {
		in     string
		public bool
		want   string // network and address, or a part of the error
	}{
		{"127.0.0.1:8080", false, "tcp 127.0.0.1:8080"},
		{"127.1.2.3:0", false, "tcp 127.1.2.3:0"},
		{"[::1]:8080", false, "tcp [::1]:8080"},
		{"localhost:8080", false, "tcp localhost:8080"},
		{"unix:/run/x.sock", false, "unix /run/x.sock"},
		{"0.0.0.0:8080", false, "other machines"},
		{":8080", false, "other machines"},
		{"[::]:8080", false, "other machines"},
		{"192.168.0.1:8080", false, "other machines"},
		{"0.0.0.0:8080", true, "tcp 0.0.0.0:8080"},
		{":8080", true, "tcp :8080"},
		{"gate.example:8080", false, "want an IP address"},
		{"localhost.example:8080", false, "want an IP address"},
		{"127.0.0.1", false, "want 127.0.0.1:PORT"},
		{"127.0.0.1:http", false, "number"},
		{"127.0.0.1:65536", false, "number"},
		{"127.0.0.1:-1", false, "number"},
		{"unix:x.sock", false, "absolute"},
		{"unix:", false, "absolute"},
		{"unix:/" + strings.Repeat("x", maxSocketPath), false, "at most 107 bytes"},
		{"", false, "want 127.0.0.1:PORT"},
	} {
		network, address, err := parseListen(c.in, c.public)
		got := network + " " + address
		if err != nil {
			got = err.Error()
			if !strings.HasPrefix(got, `[[relay]] listen = "`+c.in+`": `) {
				t.Errorf("%q: %q does not name the key", c.in, got)
			}
		}
		if err == nil && got != c.want || err != nil && !strings.Contains(got, c.want) {
			t.Errorf("%q: got %q", c.in, got)
		}
	}
	for service, ok := range map[transport.Name]bool{"maps": true, "": false, "Maps": false, "a b": false} {
		if _, err := New(Config{Service: service, Listen: "127.0.0.1:0"}, nil, slog.Default()); (err == nil) != ok {
			t.Errorf("service %q: %v", service, err)
		}
	}
}

func listen(t *testing.T, address string) (net.Listener, error) {
	t.Helper()
	r, err := New(Config{Service: "maps", Listen: address}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := r.Listen(t.Context())
	if err == nil {
		t.Cleanup(func() { ln.Close() })
	}
	return ln, err
}

func TestPortInUse(t *testing.T) {
	ln, err := listen(t, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := ln.Addr().String()
	_, err = listen(t, taken)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), `[[relay]] listen = "`+taken+`"`) || !strings.Contains(err.Error(), "set another address") {
		t.Errorf("got %v", err)
	}
	if _, err := listen(t, "127.0.0.1:65535"); err != nil && !strings.Contains(err.Error(), "[[relay]] listen") {
		t.Errorf("got %v", err)
	}
}

func TestSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := listen(t, "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := listen(t, "unix:"+path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("in use: got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("the socket of the one that listens is gone")
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // as if killed
	ln.Close()
	ln, err = listen(t, "unix:"+path)
	if err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	ln.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t, "unix:"+path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: got %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file was touched")
	}
	_, err = listen(t, "unix:"+filepath.Join(t.TempDir(), "missing", "s"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "create the directory") {
		t.Errorf("no directory: got %v", err)
	}
}
