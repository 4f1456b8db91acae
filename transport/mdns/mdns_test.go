package mdns

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// On this machine's own network; between two machines: scripts/stories.
func TestFind(t *testing.T) {
	if !slices.ContainsFunc(Interfaces(), func(i Interface) bool { return i.Multicast && len(i.Addrs) > 0 && i.Addrs[0].Is4() }) {
		t.Skip("no network here that takes multicast")
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- Answer(ctx, 4711, slog.New(slog.DiscardHandler)) }()
	var found []netip.AddrPort
	for give := time.Now().Add(20 * time.Second); len(found) == 0 && time.Now().Before(give); {
		var err error
		if found, err = Find(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(found) == 0 || found[0].Port() != 4711 || !slices.ContainsFunc(Interfaces(), func(i Interface) bool { return slices.Contains(i.Addrs, found[0].Addr()) }) {
		t.Errorf("found %v", found)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if found, err := Find(t.Context()); err != nil || slices.ContainsFunc(found, func(a netip.AddrPort) bool { return a.Port() == 4711 }) {
		t.Errorf("found %v after the end, %v", found, err)
	}
}
