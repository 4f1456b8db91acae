package main

import (
	"os"
	"strings"
)

// maxNumber bounds a serial number that is read.
const maxNumber = 256

// ownNumbers are those that firmware knows this machine by, and the machine's
// name, as far as the daemon may read them: a code that an operator makes up has
// nothing of them.
func ownNumbers() (list []string) {
	for _, path := range []string{
		"/sys/firmware/devicetree/base/serial-number", // boards
		"/sys/class/dmi/id/product_serial", "/sys/class/dmi/id/board_serial", "/sys/class/dmi/id/chassis_serial",
	} {
		if b, err := os.ReadFile(path); err == nil && len(b) <= maxNumber {
			list = append(list, strings.TrimRight(string(b), "\x00\n "))
		}
	}
	if name, err := os.Hostname(); err == nil {
		list = append(list, name)
	}
	return list
}
