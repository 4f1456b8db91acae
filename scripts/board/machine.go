//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for a device.
const patience = 30 * time.Second

func mounts() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return os.MkdirAll("/var/lib/kagimori", 0o700)
}

// modules loads the modules of a folder in the order of their names.
func modules(dir string) error {
	found, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("no modules in %s: %w", dir, err)
	}
	for _, path := range found {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}

// await waits until a path is there.
func await(path string) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s has not appeared within %v", path, patience)
}

func disk(device, at string) error {
	if err := await(device); err != nil {
		return err
	}
	if err := unix.Mount(device, at, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	return os.Chmod(at, 0o700)
}

// network gives the board the address at which the emulator expects it; the
// machine around it is 10.0.2.2.
func network() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for _, d := range []struct {
		name     string
		ip, mask net.IP
	}{
		{"lo", net.IPv4(127, 0, 0, 1), net.IPv4(255, 0, 0, 0)},
		{"eth0", net.IPv4(10, 0, 2, 15), net.IPv4(255, 255, 255, 0)},
	} {
		if err := await("/sys/class/net/" + d.name); err != nil {
			return err
		}
		if err := setAddress(s, unix.SIOCSIFADDR, d.name, d.ip); err != nil {
			return err
		}
		if err := setAddress(s, unix.SIOCSIFNETMASK, d.name, d.mask); err != nil {
			return err
		}
		r, err := unix.NewIfreq(d.name)
		if err != nil {
			return err
		}
		r.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
			return fmt.Errorf("bring %s up: %w", d.name, err)
		}
	}
	return nil
}

func setAddress(socket int, call uint, name string, ip net.IP) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := r.SetInet4Addr(ip.To4()); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, call, r); err != nil {
		return fmt.Errorf("address of %s: %w", name, err)
	}
	return nil
}

// port opens a port of the serial device by the name that the story gave it.
func port(name string) (*os.File, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			text, _ := os.ReadFile(path)
			if strings.TrimSpace(string(text)) != name {
				continue
			}
			device := "/dev/" + filepath.Base(filepath.Dir(path))
			if err := await(device); err != nil {
				return nil, err
			}
			// Not os.OpenFile's poller: the driver tells it of a hang-up while
			// the other end has not connected yet.
			fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open %s: %w", device, err)
			}
			return os.NewFile(uintptr(fd), device), nil
		}
	}
	return nil, fmt.Errorf("no port %s within %v", name, patience)
}

func ioctl(fd uintptr, call uintptr, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, call, uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}
