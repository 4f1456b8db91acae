package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Probe knocks at address, where Run serves, and returns nil when the accept
// loop has come round. Only the loop is looked at: that strangers keep
// handshakes busy, or all descriptors, is no reason to start anew, which would
// disconnect everybody. One Probe at a time.
func (b *Broker) Probe(ctx context.Context, address string) error {
	select {
	case <-b.turned: // it came round before
	default:
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err == nil {
		defer conn.Close()
	}
	select {
	case <-b.turned:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no connection is accepted: %w", errors.Join(err, ctx.Err()))
	}
}
