//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's TPM proxy (Documentation/security/tpm/tpm_vtpm_proxy.rst) makes
// /dev/tpm0 and /dev/tpmrm0, then 1, whose commands we answer. We pass them on to the
// emulated chip outside of the machine, so that driver, resource manager and
// device files are the kernel's own.
const (
	proxyNewDevice = 0xc014a100 // VTPM_PROXY_IOC_NEW_DEV
	proxyTPM2      = 1          // VTPM_PROXY_FLAG_TPM2
	setLocality    = 0x20001000 // TPM2_CC_SET_LOCALITY, of the proxy, not of the chip
	headerSize     = 10
	maxCommand     = 4096
)

// proxyDevice is struct vtpm_proxy_new_dev.
type proxyDevice struct{ flags, number, fd, major, minor uint32 }

// chip makes the next /dev/tpmrm, and answers from the port from then on.
func chip(port io.ReadWriter) error {
	x, err := os.OpenFile("/dev/vtpmx", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	d := proxyDevice{flags: proxyTPM2}
	if err := ioctl(x.Fd(), proxyNewDevice, unsafe.Pointer(&d)); err != nil {
		return fmt.Errorf("make a TPM device: %w", err)
	}
	go func() { fmt.Println("board: the chip is gone:", relay(int(d.fd), port)) }()
	return await(fmt.Sprintf("/dev/tpmrm%d", d.number))
}

// relay carries commands to the chip and answers back. The kernel gives and takes
// each in one piece.
func relay(kernel int, port io.ReadWriter) error {
	command, answer := make([]byte, maxCommand), make([]byte, maxCommand)
	for {
		n, err := again(func() (int, error) { return unix.Read(kernel, command) })
		if err != nil {
			return fmt.Errorf("read a command: %w", err)
		}
		if n < headerSize {
			return fmt.Errorf("a command of %d bytes", n)
		}
		if binary.BigEndian.Uint32(command[6:]) == setLocality {
			done := []byte{0x80, 0x01, 0, 0, 0, headerSize, 0, 0, 0, 0}
			if _, err := again(func() (int, error) { return unix.Write(kernel, done) }); err != nil {
				return fmt.Errorf("answer: %w", err)
			}
			continue
		}
		if _, err := port.Write(command[:n]); err != nil {
			return fmt.Errorf("send to the chip: %w", err)
		}
		if _, err := io.ReadFull(port, answer[:headerSize]); err != nil {
			return fmt.Errorf("read from the chip: %w", err)
		}
		size := binary.BigEndian.Uint32(answer[2:])
		if size < headerSize || size > maxCommand {
			return fmt.Errorf("an answer of %d bytes", size)
		}
		if _, err := io.ReadFull(port, answer[headerSize:size]); err != nil {
			return fmt.Errorf("read from the chip: %w", err)
		}
		if _, err := again(func() (int, error) { return unix.Write(kernel, answer[:size]) }); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// again repeats a call that a signal interrupts: Go sends itself some.
func again(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != unix.EINTR {
			return n, err
		}
	}
}
