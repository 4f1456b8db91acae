package tcp

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// headerSize is uint32 length of the body and uint8 type.
const headerSize = 5

// Sizes of the buffers, in bytes: a TLS record out, a handshake message in.
const (
	writeBuffer = 16 << 10
	readBuffer  = 4 << 10
)

// busyTime bounds the write of the last word to a Target; it does not block
// unless the Target reads nothing.
const busyTime = time.Second

// A Conn carries frames over one TLS connection. One goroutine reads and
// writes; Close may come from another. No call outlasts
// transport.KeycopySessionTimeout, counted from the connection's start.
type Conn struct {
	tls     *tls.Conn
	wire    *wire
	channel transport.KeycopyChannel
	until   time.Time
	seat    *seat // nil in a Target
	r       *bufio.Reader
	w       *bufio.Writer
	stop    func() bool
}

// A wire notes that the peer's stream has ended. crypto/tls takes that for a
// closure in due form when it falls between two records, which anybody on the
// path can bring about; close_notify it reports without having seen the end.
type wire struct {
	net.Conn
	ended atomic.Bool
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err == io.EOF {
		w.ended.Store(true)
	}
	return n, err
}

func newConn(ctx context.Context, t *tls.Conn, w *wire, ch transport.KeycopyChannel, until time.Time) *Conn {
	return &Conn{tls: t, wire: w, channel: ch, until: until,
		r: bufio.NewReaderSize(t, readBuffer), w: bufio.NewWriterSize(t, writeBuffer),
		stop: context.AfterFunc(ctx, func() { t.NetConn().Close() })}
}

// Channel says what TLS proved.
func (c *Conn) Channel() transport.KeycopyChannel { return c.channel }

// ReadFrame waits at most wait for a frame to begin, and
// transport.KeycopyMessageTimeout for the rest of it. A body of more than limit
// bytes is transport.ErrMalformed and is not read; a deadline that passes is
// os.ErrDeadlineExceeded. In a Source the first frame has to be there 5 s after
// the connection was accepted, and until then ReadFrame is
// transport.KeycopyBusy when the connection has to make room for another. io.EOF
// is the peer's close_notify and nothing else.
func (c *Conn) ReadFrame(limit int, wait time.Duration) (transport.KeycopyFrame, error) {
	if err := c.wait(wait); err != nil {
		return transport.KeycopyFrame{}, fmt.Errorf("read frame: %w", err)
	}
	if _, err := c.r.Peek(1); err != nil {
		return transport.KeycopyFrame{}, fmt.Errorf("read frame: %w", c.blame(err))
	}
	if err := c.wait(transport.KeycopyMessageTimeout); err != nil {
		return transport.KeycopyFrame{}, fmt.Errorf("read frame: %w", err)
	}
	f, err := readFrame(c.r, limit)
	if err == nil && c.seat != nil {
		err = c.seat.spoke()
	}
	if err != nil {
		return transport.KeycopyFrame{}, c.blame(err)
	}
	return f, nil
}

// wait bounds the reads that follow.
func (c *Conn) wait(limit time.Duration) error {
	if c.seat != nil {
		return c.seat.wait(c.deadline(limit))
	}
	return c.tls.SetReadDeadline(c.deadline(limit))
}

// blame says why a read or write failed.
func (c *Conn) blame(err error) error {
	if c.seat != nil && c.seat.lost() {
		return errDisplaced
	}
	if errors.Is(err, io.EOF) && c.wire.ended.Load() {
		return io.ErrUnexpectedEOF
	}
	return err
}

func readFrame(r io.Reader, limit int) (f transport.KeycopyFrame, err error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return f, fmt.Errorf("read frame: %w", err)
	}
	f.Type = transport.KeycopyType(header[4])
	length := binary.BigEndian.Uint32(header[:4])
	if int64(length) > int64(limit) {
		return f, fmt.Errorf("read %s: %w: %d bytes, the limit is %d", f.Type, transport.ErrMalformed, length, limit)
	}
	f.Body = make([]byte, length)
	if _, err := io.ReadFull(r, f.Body); err != nil {
		return f, fmt.Errorf("read %s: %w", f.Type, err)
	}
	return f, nil
}

// WriteFrame holds f back, as far as the buffer goes, until a frame with flush.
func (c *Conn) WriteFrame(f transport.KeycopyFrame, flush bool) error {
	if err := c.blame(nil); err != nil { // busy has the last word
		return fmt.Errorf("write %s: %w", f.Type, err)
	}
	if err := c.tls.SetWriteDeadline(c.deadline(transport.KeycopyMessageTimeout)); err != nil {
		return fmt.Errorf("write %s: %w", f.Type, err)
	}
	return c.write(f, flush)
}

func (c *Conn) write(f transport.KeycopyFrame, flush bool) error {
	var header [headerSize]byte
	binary.BigEndian.PutUint32(header[:4], uint32(len(f.Body)))
	header[4] = byte(f.Type)
	if _, err := c.w.Write(header[:]); err != nil {
		return fmt.Errorf("write %s: %w", f.Type, err)
	}
	if _, err := c.w.Write(f.Body); err != nil {
		return fmt.Errorf("write %s: %w", f.Type, err)
	}
	if flush {
		if err := c.w.Flush(); err != nil {
			return fmt.Errorf("write %s: %w", f.Type, err)
		}
	}
	return nil
}

// busy tells a Target that it had to make room, when all else is over.
func (c *Conn) busy() error {
	f, err := transport.EncodeKeycopy(&transport.KeycopyError{Code: transport.KeycopyBusy})
	if err != nil {
		return err
	}
	if err := c.tls.SetWriteDeadline(time.Now().Add(busyTime)); err != nil {
		return fmt.Errorf("write %s: %w", f.Type, err)
	}
	return c.write(f, true)
}

// Close ends the connection. Frames that were not flushed are lost.
func (c *Conn) Close() error {
	c.stop()
	return c.tls.Close()
}

func (c *Conn) deadline(wait time.Duration) time.Time {
	if d := time.Now().Add(wait); d.Before(c.until) {
		return d
	}
	return c.until
}
