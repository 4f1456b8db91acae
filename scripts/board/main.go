//go:build linux

// Board is process 1 of an emulated board: a real kernel for another processor,
// our programs, and nothing else. START HERE: main.go brings the machine up,
// machine.go its modules, disk and network, chip.go its TPM, run.go runs what the
// story on the other side asks for.
//
// The story cuts the power by killing the emulator, so nothing here ends well.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	err := bring()
	fmt.Println("board:", err) // to the console, which the story keeps
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// bring brings the machine up and serves until the story is gone.
func bring() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("this is not process 1: boot it")
	}
	if err := mounts(); err != nil {
		return err
	}
	if err := modules("/modules"); err != nil {
		return err
	}
	if err := disk("/dev/vda", "/var/lib/kagimori"); err != nil {
		return err
	}
	if err := network(); err != nil {
		return err
	}
	for _, name := range []string{"tpm0", "tpm1"} {
		tpm, err := port(name)
		if err != nil {
			return err
		}
		if err := chip(tpm); err != nil {
			return err
		}
	}
	story, err := port("story")
	if err != nil {
		return err
	}
	return serve(story)
}
