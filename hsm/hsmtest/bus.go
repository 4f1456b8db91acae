package hsmtest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Bus sits between a module and a TPM socket, where an interposer would. It
// records all that crosses, and may answer in the TPM's place.
type Bus struct {
	Socket string // what the module opens

	target string
	answer Answer
	wg     sync.WaitGroup
	ln     net.Listener

	mu       sync.Mutex // guards all below
	all      []byte
	commands []uint32
	open     map[net.Conn]bool
}

// Answer makes the response to a command; next asks the TPM and is nil-valued
// when the TPM is gone. A nil response drops the connection.
type Answer func(command []byte, next func(command []byte) []byte) []byte

// Record relays between the returned socket and the TPM at socketPath; bytes
// returns every byte that crossed so far, in both directions.
func Record(t testing.TB, socketPath string) (proxyPath string, bytes func() []byte) {
	t.Helper()
	b := NewBus(t, socketPath, nil)
	return b.Socket, b.Bytes
}

// NewBus starts a bus in front of the TPM at socketPath; it ends with the test.
// With a nil answer it only records.
func NewBus(t testing.TB, socketPath string, answer Answer) *Bus {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	b := &Bus{Socket: filepath.Join(dir, "s"), target: socketPath, answer: answer, open: map[net.Conn]bool{}}
	if b.ln, err = net.Listen("unix", b.Socket); err != nil {
		t.Fatal(err)
	}
	b.wg.Go(b.accept)
	t.Cleanup(func() {
		b.ln.Close()
		b.Drop()
		b.wg.Wait()
		os.RemoveAll(dir)
	})
	return b
}

// Bytes returns what crossed so far, commands and responses, in order.
func (b *Bus) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.all)
}

// Commands returns the TPM_CC of each command so far.
func (b *Bus) Commands() []uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.commands)
}

// Drop closes the connections that are open now.
func (b *Bus) Drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.open {
		c.Close()
	}
}

func (b *Bus) accept() {
	for {
		c, err := b.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		b.wg.Go(func() { b.serve(c) })
	}
}

// hold notes an open connection; the returned function closes it.
func (b *Bus) hold(c net.Conn) (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[c] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.open, c)
		c.Close()
	}
}

// dialPatiently waits while the queue of clients is full: an emulator takes some
// time to see that the ones before are gone.
func dialPatiently(path string) (net.Conn, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(patience); ; <-tick.C {
		c, err := net.Dial("unix", path)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(late) {
			return c, err
		}
	}
}

func (b *Bus) serve(client net.Conn) {
	defer b.hold(client)()
	chip, err := dialPatiently(b.target)
	if err != nil {
		return
	}
	defer b.hold(chip)()
	next := func(command []byte) []byte {
		if _, err := chip.Write(command); err != nil {
			return nil
		}
		response, _ := frame(chip)
		return response
	}
	for {
		command, err := frame(client)
		if err != nil {
			return
		}
		b.mu.Lock()
		b.all = append(b.all, command...)
		b.commands = append(b.commands, binary.BigEndian.Uint32(command[6:]))
		b.mu.Unlock()
		var response []byte
		if b.answer != nil {
			response = b.answer(command, next)
		} else {
			response = next(command)
		}
		if response == nil {
			return
		}
		b.mu.Lock()
		b.all = append(b.all, response...)
		b.mu.Unlock()
		if _, err := client.Write(response); err != nil {
			return
		}
	}
}

// frame reads one command or response: tag 2, size 4, code 4, the rest.
func frame(r io.Reader) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < 10 || size > 4096 {
		return nil, errors.New("not a TPM frame")
	}
	b := append(head, make([]byte, size-10)...)
	_, err := io.ReadFull(r, b[10:])
	return b, err
}

// Code is the command code of a command.
func Code(command []byte) uint32 { return binary.BigEndian.Uint32(command[6:]) }

// Fail is the response that carries nothing but a response code.
func Fail(rc uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0x8001) // TPM_ST_NO_SESSIONS
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, 10), rc)
}
