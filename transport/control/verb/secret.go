package verb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

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
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		secret, err = readHidden(cmd.Context(), int(in.(*os.File).Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
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

// readHidden gives up when ctx ends and leaves the terminal echoing.
func readHidden(ctx context.Context, fd int) ([]byte, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type result struct {
		secret []byte
		err    error
	}
	// The read cannot be interrupted: after a signal it ends with the process.
	done := make(chan result, 1)
	go func() {
		secret, err := term.ReadPassword(fd)
		done <- result{secret, err}
	}()
	select {
	case r := <-done:
		return r.secret, r.err
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), term.Restore(fd, before))
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
