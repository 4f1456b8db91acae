package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kagimori/kagimori/transport/control"
)

const (
	socketMode = 0o660
	// maxSocketPath is what sun_path holds, less its final NUL (unix(7)).
	maxSocketPath = 107
	// probeWait is how long a socket that is there already may take to show
	// whether somebody listens on it.
	probeWait = time.Second
)

// parseListen gives what net.Listen takes.
func parseListen(s string, public bool) (network, address string, err error) {
	bad := func(why string) (string, string, error) {
		return "", "", fmt.Errorf("[[relay]] listen = %q: %s", s, why)
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		switch {
		case !filepath.IsAbs(path):
			return bad("the path of a socket must be absolute: unix:/run/...")
		case len(path) > maxSocketPath:
			return bad(fmt.Sprintf("the path of a socket has at most %d bytes", maxSocketPath))
		}
		return "unix", path, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return bad("want 127.0.0.1:PORT, [::1]:PORT or unix:/path")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return bad("the port must be a number up to 65535")
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case public || host == "localhost" || err == nil && ip.IsLoopback():
		return "tcp", s, nil
	case err != nil && host != "":
		return bad("want an IP address: 127.0.0.1, [::1] or one of this machine")
	}
	return bad("other machines could reach it and would use this terminal's credential: listen on 127.0.0.1, [::1] or unix:/path, or set exposed = true")
}

// Listen binds the local address, for callers that want to know that it is
// theirs before they call Serve.
func (r *Relay) Listen(ctx context.Context) (net.Listener, error) {
	if r.network == "unix" {
		if err := removeStale(ctx, r.address); err != nil {
			return nil, r.listenError(err)
		}
	}
	var lc net.ListenConfig
	if r.network == "unix" {
		lc.Control = control.SocketMode(socketMode)
	}
	ln, err := lc.Listen(ctx, r.network, r.address)
	if err != nil {
		return nil, r.listenError(err)
	}
	if r.network == "unix" {
		if err := os.Chmod(r.address, socketMode); err != nil {
			_ = ln.Close()
			return nil, r.listenError(err)
		}
	}
	return ln, nil
}

func (r *Relay) listenError(err error) error {
	next := "set another address"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		next = "another program has it (ss -ltnp or ss -lxp names it): stop that one, or set another address"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		next = "this machine does not have the address: ip addr lists those it has"
	case errors.Is(err, fs.ErrPermission) && r.network == "tcp":
		next = "ports below 1024 are reserved: set one above"
	case errors.Is(err, fs.ErrPermission):
		next = fmt.Sprintf("let user id %d write to %s, or set another path", os.Geteuid(), filepath.Dir(r.address))
	case errors.Is(err, fs.ErrNotExist) && r.network == "unix":
		next = "create the directory " + filepath.Dir(r.address) + ", or set another path"
	}
	return fmt.Errorf("[[relay]] listen = %q: %w: %s", r.cfg.Listen, err, next)
}

// removeStale removes the socket that a relay left which was killed. A socket
// that somebody listens on, or a file that is no socket, stays.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file of that name that is not a socket")
	}
	d := net.Dialer{Timeout: probeWait}
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return syscall.EADDRINUSE
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}

// boundAddress is how a person would write where ln listens.
func boundAddress(ln net.Listener) string {
	if a := ln.Addr(); a.Network() != "unix" {
		return a.String()
	}
	return "unix:" + ln.Addr().String()
}
