package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/agent/qr"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// onScreen runs do with a terminal of that size and gives what is on it, once it
// has shown want.
func onScreen(t *testing.T, columns, lines uint16, want string, do func(*display) error) string {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	defer person.Close()
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: lines, Col: columns}); err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	seen, finish := make(chan bool, 1), make(chan struct{})
	go func() {
		b := make([]byte, 4096)
		for !strings.Contains(all.String(), want) {
			n, err := person.Read(b)
			if err != nil {
				return
			}
			all.Write(b[:n])
		}
		seen <- true
	}()
	done := make(chan error, 1)
	go func() {
		f := verb.New("kagimori", "x", "x", "")
		f.Add(&cobra.Command{Use: "do", RunE: func(cmd *cobra.Command, _ []string) error {
			d := newDisplay(cmd)
			defer d.end()
			err := do(d)
			<-finish
			return err
		}})
		if code := f.Run(t.Context(), []string{"do"}, program, program, program); code != 0 {
			done <- fmt.Errorf("exit %d", code)
		}
		close(done)
	}()
	select {
	case <-seen:
	case <-time.After(10 * time.Second):
		t.Errorf("never shown: %q", want)
		person.Close()
	}
	close(finish)
	if err := <-done; err != nil {
		t.Error(err)
	}
	return all.String()
}

// On a terminal the time that is left counts down, on a line of its own.
func TestTheTimeLeftCountsDown(t *testing.T) {
	reader, ev := anOffer(t)
	ev.Seconds = 272
	got := onScreen(t, 80, 24, "the code is good for 4:3", func(d *display) error { return d.armed(reader, ev) })
	if !strings.Contains(got, "\r\x1b[Kwaiting; the code is good for 4:3") {
		t.Errorf("%q", got)
	}
}

func TestQRCodeInATerminal(t *testing.T) {
	reader, ev := anOffer(t)
	code, err := qr.Encode("kagimori-keycopy:?a=192.0.2.7:8885&k=LHDhK3oGRvkiefQnx7OOczTY5TizTWksw6Rl-AV_9gw")
	if err != nil {
		t.Fatal(err)
	}
	ev.QR = code.Rows()
	drawn := strings.Split(strings.TrimSpace(qr.Blocks(ev.QR)), "\n")
	asked := func(d *display) error { d.qr = true; return d.armed(reader, ev) }
	if got := onScreen(t, 80, 25, "waiting", asked); !strings.Contains(got, drawn[len(drawn)/2]) {
		t.Errorf("not drawn:\n%s", got)
	}
	if got := onScreen(t, 40, 25, "waiting", asked); strings.Contains(got, drawn[2]) || !strings.Contains(got, "needs a terminal of 45 columns and 24 lines") {
		t.Errorf("drawn where it does not fit:\n%s", got)
	}
	if got := onScreen(t, 80, 25, "waiting", func(d *display) error { return d.armed(reader, ev) }); strings.Contains(got, drawn[2]) {
		t.Errorf("drawn though nobody asked:\n%s", got)
	}
	if got := shown(t, false, asked); strings.Contains(got, drawn[2]) {
		t.Errorf("drawn into a log:\n%s", got)
	}
}
