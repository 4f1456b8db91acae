package systemd

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
)

// A Notifier tells the service manager how the daemon is. Without
// $NOTIFY_SOCKET it does nothing; when the socket fails it says so once in the
// log, and the daemon goes on.
type Notifier struct {
	log    *slog.Logger
	send   func(state string) error
	failed sync.Once
}

// NewNotifier makes one. Make it once, in main.
func NewNotifier(log *slog.Logger) *Notifier {
	return &Notifier{log: log, send: func(state string) error {
		_, err := daemon.SdNotify(false, state)
		return err
	}}
}

// Ready says that start-up, or a reload, is complete: call it when the sockets
// are open and the store is too.
func (n *Notifier) Ready(status string) { n.notify(daemon.SdNotifyReady + statusLine(status)) }

// Status is the line that `systemctl status` shows.
func (n *Notifier) Status(format string, args ...any) {
	n.notify(strings.TrimPrefix(statusLine(fmt.Sprintf(format, args...)), "\n"))
}

// Reloading says that a reload begins; Ready ends it.
func (n *Notifier) Reloading() {
	n.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// Stopping says that the daemon is on its way out.
func (n *Notifier) Stopping() { n.notify(daemon.SdNotifyStopping) }

// statusLine keeps a status to its one line: a newline would start another
// assignment.
func statusLine(status string) string {
	if status == "" {
		return ""
	}
	return "\nSTATUS=" + strings.ReplaceAll(status, "\n", " ")
}

func (n *Notifier) notify(state string) {
	if err := n.send(state); err != nil {
		n.failed.Do(func() { n.log.Warn("cannot notify systemd", "err", err) })
	}
}
