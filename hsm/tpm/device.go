package tpm

// A chip behind /dev/tpmrm0. The node is opened non-blocking, so that a kernel
// thread runs the command and no signal to this process can break a transfer;
// the response is then polled for, and polled again after EINTR.
//
// A hung chip blocks write, poll and close alike inside the kernel (they wait
// for the command's buffer), beyond any timeout given to poll. So a goroutine
// of its own makes these calls. At the deadline it is abandoned with its file;
// when the kernel lets go of it, it closes the file and ends. As long as one is
// abandoned no other is started: a dead chip costs one thread, not one per try.

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/hsm"
)

type device struct {
	requests chan request  // closed by close
	replies  chan reply    // holds one: the goroutine never waits to deliver
	done     chan struct{} // closed when the file is closed
	hung     bool          // a deadline passed
}

type request struct {
	command  []byte
	deadline time.Time
}

type reply struct {
	response []byte
	err      error
}

func deviceDialer(open func() (fd int, err error)) dialer {
	var last *device
	return func(deadline time.Time) (wire, error) {
		if last != nil && !waitFor(last.done, deadline) {
			return nil, fmt.Errorf("%w: the kernel still waits for an earlier command; reset the chip or restart the machine", hsm.ErrTimeout)
		}
		fd, err := open()
		if err != nil {
			return nil, err
		}
		last = newDevice(fd)
		return last, nil
	}
}

func openNode(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
			return -1, fmt.Errorf("%w: no chip behind %s; check that firmware enables it", hsm.ErrAbsent, path)
		case errors.Is(err, unix.EBUSY):
			return -1, fmt.Errorf("%w: end the program that holds %s, or use %s", hsm.ErrBusy, path, DefaultPath)
		case errors.Is(err, fs.ErrPermission):
			return -1, fmt.Errorf("%w: give this program's user the group of %s, usually tss", err, path)
		}
		return -1, err
	}
}

// newDevice takes fd over.
func newDevice(fd int) *device {
	d := &device{requests: make(chan request, 1), replies: make(chan reply, 1), done: make(chan struct{})}
	go d.serve(fd)
	return d
}

// serve makes every system call on fd.
func (d *device) serve(fd int) {
	defer close(d.done)
	defer unix.Close(fd)
	for r := range d.requests {
		response, err := transact(fd, r.command, r.deadline)
		d.replies <- reply{response, err}
		if err != nil {
			return
		}
	}
}

func (d *device) exchange(command []byte, deadline time.Time) ([]byte, error) {
	d.requests <- request{command, deadline}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case r := <-d.replies:
		d.hung = errors.Is(r.err, hsm.ErrTimeout)
		return r.response, r.err
	case <-timer.C:
		d.hung = true
		return nil, errHung
	}
}

var errHung = fmt.Errorf("%w: the chip hangs; if this repeats, reset it or restart the machine", hsm.ErrTimeout)

// close gives the file back, and waits for that unless the kernel hangs on it.
func (d *device) close() {
	close(d.requests)
	if !d.hung {
		<-d.done
	}
}

// waitFor tells whether done was closed before the deadline.
func waitFor(done <-chan struct{}, deadline time.Time) bool {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// transact writes a command and reads its response: one write, one read, as the
// node wants it.
func transact(fd int, command []byte, deadline time.Time) ([]byte, error) {
	n, err := again(func() (int, error) { return unix.Write(fd, command) })
	if err != nil {
		return nil, &unsentError{explainNode("write", err)}
	}
	if n != len(command) {
		return nil, fmt.Errorf("the chip took %d of %d bytes", n, len(command))
	}
	if err := await(fd, deadline); err != nil {
		return nil, err
	}
	response := make([]byte, maxResponse)
	n, err = again(func() (int, error) { return unix.Read(fd, response) })
	if err != nil {
		return nil, explainNode("read", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: an empty answer", hsm.ErrBusy)
	}
	return response[:n], nil
}

// await polls until there is something to read.
func await(fd int, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errHung
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left/time.Millisecond)+1)
		switch {
		case errors.Is(err, unix.EINTR), err == nil && n == 0:
			continue
		case err != nil:
			return explainNode("poll", err)
		case fds[0].Revents&unix.POLLIN != 0:
			return nil
		}
		return fmt.Errorf("%w: the chip went away (poll events %#x); the next use opens it anew", hsm.ErrAbsent, fds[0].Revents)
	}
}

// again repeats a call that a signal interrupted.
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func explainNode(call string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %s: the kernel still has a command of ours", hsm.ErrBusy, call)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("%w: %s: the chip went away (%v); the next use opens it anew", hsm.ErrAbsent, call, err)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok && errno == unix.ETIME {
		return fmt.Errorf("%w: %s: %v", hsm.ErrTimeout, call, err)
	}
	return fmt.Errorf("%s: %w", call, err)
}
