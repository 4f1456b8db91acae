package systemd

import (
	"fmt"
	"net"

	"github.com/coreos/go-systemd/v22/activation"
)

// Sockets are the listeners that systemd passed, by the FileDescriptorName=
// of their socket units.
type Sockets map[string][]net.Listener

// Activated takes over the sockets passed, none outside socket activation.
// Call it once, in main: it clears the environment, so that children do not
// take them for theirs.
func Activated() (Sockets, error) {
	listeners, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("take over sockets of systemd: %w", err)
	}
	return listeners, nil
}

// Take hands over the one listener of that name, nil when there is none.
func (s Sockets) Take(name string) net.Listener {
	list := s[name]
	if len(list) == 0 {
		return nil
	}
	s[name] = list[1:]
	return list[0]
}

// Close closes those that nobody took, and names one of them: a socket unit
// with a name that the daemon does not know would be dead without a word.
func (s Sockets) Close() error {
	var err error
	for name, list := range s {
		for _, l := range list {
			err = fmt.Errorf("systemd passed a socket named %q, which nothing here uses: correct FileDescriptorName= (control)", name)
			l.Close()
		}
	}
	return err
}
