package tpm

// A TPM emulator behind a unix socket: one connection kept, whole responses
// read, one client at a time.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// A wire carries one command at a time to a TPM. After an error it is of no
// more use: whether the command ran is unknown.
type wire interface {
	exchange(command []byte, deadline time.Time) (response []byte, err error)
	close()
}

// A dialer makes a new wire.
type dialer func(deadline time.Time) (wire, error)

const (
	headSize    = 10   // tag 2, size 4, response code 4
	maxResponse = 4096 // what the kernel's buffer holds too
)

// busyAfter is how long the first answer on a connection may take. An emulator
// gives it at once, unless another program is connected: then it never comes.
const busyAfter = 5 * time.Second

type socket struct {
	conn net.Conn
	used bool // it has answered before
}

func socketDialer(path string) dialer {
	return func(deadline time.Time) (wire, error) {
		conn, err := (&net.Dialer{Deadline: deadline}).Dial("unix", path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w: nobody listens at %s; start the TPM emulator", hsm.ErrAbsent, path)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.EAGAIN):
			return nil, fmt.Errorf("%w: %s takes no more connections; end the other program", hsm.ErrBusy, path)
		case err != nil:
			return nil, err
		}
		return &socket{conn: conn}, nil
	}
}

func (s *socket) exchange(command []byte, deadline time.Time) ([]byte, error) {
	if soon := time.Now().Add(busyAfter); !s.used && soon.Before(deadline) {
		deadline = soon
	}
	if err := s.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if n, err := s.conn.Write(command); err != nil {
		if err = s.explain(err); n == 0 && !errors.Is(err, hsm.ErrTimeout) {
			err = &unsentError{err}
		}
		return nil, err
	}
	response := make([]byte, headSize, 512)
	if _, err := io.ReadFull(s.conn, response); err != nil {
		return nil, s.explain(err)
	}
	size := binary.BigEndian.Uint32(response[2:])
	if size < headSize || size > maxResponse {
		return nil, fmt.Errorf("a response of %d bytes", size)
	}
	response = append(response, make([]byte, size-headSize)...)
	if _, err := io.ReadFull(s.conn, response[headSize:]); err != nil {
		return nil, s.explain(err)
	}
	s.used = true
	return response, nil
}

func (s *socket) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && !s.used:
		return fmt.Errorf("%w: no answer on a new connection; it hangs, or another program is connected (%w): end that one",
			hsm.ErrTimeout, hsm.ErrBusy)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: restart the TPM emulator", hsm.ErrTimeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: the TPM emulator went away (%v); the next use connects anew", hsm.ErrAbsent, err)
	}
	return err
}

func (s *socket) close() { s.conn.Close() }
