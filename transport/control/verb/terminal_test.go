package verb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// terminal opens a pseudo terminal: what the program holds and what the
// person in front of it holds.
func terminal(t *testing.T) (program, person *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program, person
}

// screenText reads from the person's side until it has seen want.
func screenText(t *testing.T, person *os.File, want string) string {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		var all []byte
		b := make([]byte, 256)
		for !bytes.Contains(all, []byte(want)) {
			n, err := person.Read(b)
			if err != nil {
				break
			}
			all = append(all, b[:n]...)
		}
		got <- string(all)
	}()
	select {
	case s := <-got:
		return s
	case <-time.After(10 * time.Second):
		t.Fatalf("%q does not appear", want)
		return ""
	}
}

func TestColourOnlyOnATerminal(t *testing.T) {
	_, out, _ := try(t, "", "credential show maps-1")
	if want := "ID      STATE\nmaps-1  in force\nx\uFFFD[2J   expired\n"; out != want {
		t.Errorf("no terminal:\n%q\nwant\n%q", out, want)
	}
	program, person := terminal(t)
	t.Setenv("TERM", "xterm")
	run := func() string {
		demo().Run(t.Context(), []string{"credential", "show", "maps-1"}, program, program, io.Discard)
		fmt.Fprint(program, "END")
		return screenText(t, person, "END")
	}
	if got := run(); !strings.Contains(got, "\x1b[32min force\x1b[0m") || strings.Contains(got, "\x1b[2J") {
		t.Errorf("on a terminal: %q", got)
	}
	t.Setenv("NO_COLOR", "1")
	if got := run(); strings.Contains(got, "\x1b[") {
		t.Errorf("with NO_COLOR: %q", got)
	}
}

// TestSecretFromATerminal: what is typed does not appear, and the terminal
// echoes again afterwards, also after a signal.
func TestSecretFromATerminal(t *testing.T) {
	program, person := terminal(t)
	var out bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- demo().Run(t.Context(), []string{"secret"}, program, &out, program)
	}()
	var seen strings.Builder
	for _, secret := range []string{"hunter2", "pass word"} {
		seen.WriteString(screenText(t, person, "Operator code: "))
		fmt.Fprintf(person, "%s\n", secret)
	}
	if code := <-done; code != 0 || out.String() != "7 9 " {
		t.Errorf("exit %d, %q", code, &out)
	}
	fmt.Fprint(program, "END")
	if seen.WriteString(screenText(t, person, "END")); strings.Contains(seen.String(), "hunter2") || strings.Contains(seen.String(), "pass") {
		t.Errorf("on the screen: %q", seen.String())
	}

	before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- demo().Run(ctx, []string{"secret"}, program, io.Discard, program) }()
	screenText(t, person, "Operator code: ")
	cancel()
	if code := <-done; code != 130 {
		t.Errorf("interrupted: exit %d", code)
	}
	if after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS); err != nil || after.Lflag != before.Lflag {
		t.Errorf("the terminal stays dumb: %v", err)
	}
	fmt.Fprintln(person) // frees the reader that is left
}

func TestSecretFromStandardInput(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, c := range []struct {
		stdin, out string
		code       int
	}{
		{"1234\nab\n", "2", 0},
		{"1234\r\nab", "2", 0},
		{long + "\nab\nrest", "2", 0},
		{"1234\n", "", 2},
		{"", "", 2},
		{"\n\n", "", 2},
		{strings.Repeat("x", 17<<10), "", 7},
	} {
		code, out, stderr := try(t, c.stdin, "secret")
		if code != c.code || !strings.HasSuffix(strings.TrimSpace(out), c.out) || code != 0 && !strings.Contains(stderr, "operator code") {
			t.Errorf("%.20q: exit %d, %q, %q", c.stdin, code, out, stderr)
		}
	}
}

// steps is a verb with progress.
func steps(t *testing.T, args []string, errOut *os.File) (string, string) {
	t.Helper()
	f := New("demo", "A program", "Shows.", "1")
	f.Add(&cobra.Command{Use: "copy", RunE: func(cmd *cobra.Command, _ []string) error {
		p := NewProgress(cmd)
		defer p.End()
		type step struct {
			N int `json:"n"`
		}
		return errors.Join(p.Step(step{1}, "one\nof %d", 2), p.Step(step{2}, "two"), p.Line(step{3}, "code 1"))
	}})
	var out, plain bytes.Buffer
	var w io.Writer = &plain
	if errOut != nil {
		w = errOut
	}
	if code := f.Run(t.Context(), args, strings.NewReader(""), &out, w); code != 0 {
		t.Errorf("exit %d: %s", code, &plain)
	}
	return out.String(), plain.String()
}

func TestProgress(t *testing.T) {
	if out, errOut := steps(t, []string{"copy"}, nil); out != "" || errOut != "one\uFFFDof 2\ntwo\ncode 1\n" {
		t.Errorf("no terminal: %q, %q", out, errOut)
	}
	if out, errOut := steps(t, []string{"copy", "--json"}, nil); out != "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n" || errOut != "" {
		t.Errorf("--json: %q, %q", out, errOut)
	}
	program, person := terminal(t)
	steps(t, []string{"copy"}, program)
	fmt.Fprint(program, "END")
	if got := screenText(t, person, "END"); !strings.HasPrefix(got, "\r\x1b[Kone\uFFFDof 2\r\x1b[Ktwo\r\x1b[Kcode 1") {
		t.Errorf("terminal: %q", got)
	}
}
