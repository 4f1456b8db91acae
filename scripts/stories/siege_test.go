package stories

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
)

// A siege is a terminal whose code is shown, strangers at its door, and the
// terminal that the code is meant for. Whatever the strangers do, that one gets
// its keys at the first try, and the code has all its attempts.
type siege struct {
	t          *testing.T
	d          *deployment
	old, fresh *terminal
	id         string
	offer      *offer
	host       atomic.Uint32 // of the next stranger
}

func newSiege(t *testing.T) *siege {
	t.Helper()
	d := newDeployment(t, nil)
	s := &siege{t: t, d: d, old: d.terminal("nav-001", chip(t)), fresh: d.terminal("nav-002", sealedFile)}
	s.old.named()
	s.id = s.old.issue()
	s.fresh.spare()
	return s
}

// under runs an attack while a code is shown, and looks at what it has done. The
// old terminal is a process of its own: what it uses is counted there.
func (s *siege) under(name string, attack func(t *testing.T)) {
	s.t.Run(name, func(t *testing.T) {
		s.old.machine.t, s.fresh.machine.t = t, t
		defer func() { s.old.machine.t, s.fresh.machine.t = s.t, s.t }()
		for _, e := range []*terminal{s.old, s.fresh} { // of the wrong codes that relieve types
			e.verb("", "kagimori", "keycopy", "unlock")
		}
		s.offer = s.old.offer(s.old.socket("kagimori"))
		before := s.old.memory(t)
		stop := s.old.watchFiles()
		began := time.Now()
		attack(t)
		took, files, after := time.Since(began), stop(), s.old.memory(t)
		t.Logf("%v; memory %d KiB, at most %d KiB, %d before; at most %d open files", took.Round(time.Millisecond), after.now, after.peak, before.now, files)
		if after.peak > before.now+siegeMemory {
			t.Errorf("the old terminal went from %d to %d KiB", before.now, after.peak)
		}
		if files > siegeFiles {
			t.Errorf("the old terminal had %d files open", files)
		}
		if log := s.offer.log.String(); strings.Contains(log, "wrong operator code") {
			t.Errorf("an attempt was counted:\n%s", log)
		}
		s.relieve(t)
	})
}

const (
	// siegeMemory is by how much strangers may make an agent grow, in KiB:
	// sixteen handshakes of some 100 KiB, and what the collector leaves in between.
	siegeMemory = 12 << 10
	// siegeFiles is how many files an agent may have open: sixteen connections,
	// as many that are making room, one that is turned away, and what it has anyway.
	siegeFiles = 16 + 16 + 1 + 21
	// reliefTime is how long the rightful terminal may take, on a machine with other work; alone it takes a
	// tenth of a second.
	reliefTime = 10 * time.Second
)

// relieve types a wrong code first, to see how many attempts the code has left,
// then the right one.
func (s *siege) relieve(t *testing.T) {
	t.Helper()
	wrong, err := keycopy.NewOperatorCode(rand.Reader, keycopy.NewClock()())
	if err != nil {
		t.Fatal(err)
	}
	s.fresh.refused(4, "2 more wrong ones destroy the code", string(wrong.Grouped())+"\n", "kagimori", "keycopy", "fetch", s.old.copy)
	s.old.until("the wrong code is reported", func() bool { return strings.Contains(s.offer.log.String(), "wrong operator code") })
	if log := s.offer.log.String(); !strings.Contains(log, "2 more wrong ones destroy the code") {
		t.Errorf("the code has not all its attempts:\n%s", log)
	}
	s.served(t)
}

// served lets the rightful terminal fetch, and wants it quick.
func (s *siege) served(t *testing.T) {
	t.Helper()
	began := time.Now()
	if out := s.fresh.verb(s.offer.code+"\n", "kagimori", "keycopy", "fetch", s.old.copy, "--json"); !strings.Contains(out, s.id) {
		t.Errorf("fetch does not name the credential:\n%s", out)
	}
	if took := time.Since(began); took > reliefTime {
		t.Errorf("the rightful terminal was served after %v", took)
	}
	<-s.offer.done
}

// footprint is the memory that the agent uses, in KiB.
type footprint struct{ now, peak int }

var memoryLine = regexp.MustCompile(`(?m)^(VmRSS|VmHWM):\s+(\d+) kB$`)

// memory also starts the measurement of the peak anew.
func (e *terminal) memory(t *testing.T) (m footprint) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", e.daemon.cmd.Process.Pid)
	b, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range memoryLine.FindAllStringSubmatch(string(b), -1) {
		n, err := strconv.Atoi(l[2])
		if err != nil {
			t.Fatal(err)
		}
		if l[1] == "VmRSS" {
			m.now = n
		} else {
			m.peak = n
		}
	}
	if err := os.WriteFile(proc+"clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	return m
}

// watchFiles looks again and again how many files the agent has open, and tells
// the most when it is stopped.
func (e *terminal) watchFiles() (stop func() int) {
	done, most := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				most <- n
				return
			case <-time.After(5 * time.Millisecond):
			}
			if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.daemon.cmd.Process.Pid)); err == nil {
				n = max(n, len(fds))
			}
		}
	}()
	return func() int { close(done); return <-most }
}

// A stranger connects from an address of its own, which nobody has turned away
// so far: 127.16.0.1 and on.
func (s *siege) stranger() *net.Dialer {
	return s.strangerAt(s.host.Add(1))
}

func (s *siege) strangerAt(host uint32) *net.Dialer {
	ip := binary.BigEndian.AppendUint32(nil, 0x7f100000+host)
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}, Timeout: patience}
}

// speaks is TLS as the door wants it, unless a test changes it.
func speaks() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		NextProtos: []string{transport.KeycopyPAKE.ALPN()}}
}

// knock does TLS with the old terminal.
func (s *siege) knock(ctx context.Context, from *net.Dialer, config *tls.Config) (*tls.Conn, error) {
	c, err := (&tls.Dialer{NetDialer: from, Config: config}).DialContext(ctx, "tcp", s.old.copy)
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), nil
}

// frame is a frame on the wire.
func frame(typ transport.KeycopyType, body []byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), byte(typ)), body...)
}

// message is the frame of a message, whatever is in it.
func message(t *testing.T, m transport.KeycopyMessage) []byte {
	t.Helper()
	body, err := transport.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return frame(m.Frame(), body)
}

// read reads the frame that comes next.
func read(c net.Conn) (f transport.KeycopyFrame, err error) {
	var head [5]byte
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return f, err
	}
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return f, err
	}
	f.Type, f.Body = transport.KeycopyType(head[4]), make([]byte, min(binary.BigEndian.Uint32(head[:]), transport.MaxKeycopyGrant))
	_, err = io.ReadFull(c, f.Body)
	return f, err
}

// fault is the ERROR that comes next, and nothing after it.
func fault(c net.Conn) (transport.KeycopyFault, error) {
	f, err := read(c)
	if err != nil {
		return 0, err
	}
	var m transport.KeycopyError
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return 0, err
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		return 0, fmt.Errorf("after ERROR %d: %d bytes, %w", m.Code, n, err)
	}
	return m.Code, nil
}
