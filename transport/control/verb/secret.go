package verb

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// ReadSecret asks for a secret: from the terminal without echo, or, when
// standard input is no terminal, as one line of it. Never from arguments or
// the environment, which other users can read. The caller wipes it.
func ReadSecret(cmd *cobra.Command, prompt string) (transport.Sensitive, error) {
	in := cmd.InOrStdin()
	what := strings.ToLower(strings.TrimRight(prompt, ": "))
	var secret []byte
	var err error
	if onTerminal(in) {
		secret, err = readHidden(cmd.Context(), in.(*os.File), cmd.ErrOrStderr(), prompt)
	} else {
		secret, err = readLine(in)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if len(secret) == 0 {
		return nil, control.Problemf(control.Usage, "type it at the prompt, or pipe it in as one line", "no %s given", what)
	}
	return secret, nil
}

// Asks says whether ReadSecret asks a person.
func Asks(cmd *cobra.Command) bool { return onTerminal(cmd.InOrStdin()) }

// readHidden prompts and reads a line without echo. Echo is off before the
// prompt appears: whoever types at once is not seen either. When ctx ends it
// gives up. The terminal is left as it was.
func readHidden(ctx context.Context, tty *os.File, w io.Writer, prompt string) ([]byte, error) {
	fd := int(tty.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	hidden.Lflag |= unix.ICANON | unix.ISIG
	hidden.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return nil, err
	}
	defer unix.IoctlSetTermios(fd, unix.TCSETS, before)
	defer fmt.Fprintln(w)
	fmt.Fprint(w, prompt)

	type result struct {
		secret []byte
		err    error
	}
	// The read cannot be interrupted: after a signal it ends with the process.
	done := make(chan result, 1)
	go func() {
		secret, err := readLine(tty)
		done <- result{secret, err}
	}()
	select {
	case r := <-done:
		return r.secret, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readLine reads up to a newline and not a byte more: the next secret may
// follow.
func readLine(r io.Reader) ([]byte, error) {
	line := make([]byte, 0, 256)
	var b [1]byte
	for {
		n, err := r.Read(b[:])
		if n == 1 && b[0] == '\n' || err == io.EOF {
			if len(line) > 0 && line[len(line)-1] == '\r' {
				line = line[:len(line)-1]
			}
			return line, nil
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			continue
		}
		if len(line) == control.MaxSecret {
			return nil, control.Problemf(control.BadInput, "", "the line is longer than %d bytes", control.MaxSecret)
		}
		if len(line) == cap(line) { // no copy is left behind by append
			grown := append(make([]byte, 0, 2*cap(line)), line...)
			clear(line)
			line = grown
		}
		line = append(line, b[0])
	}
}
