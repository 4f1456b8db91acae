package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

func TestProbe(t *testing.T) {
	r := start(t, nil)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), mqtttest.Patience)
		if err := r.b.Probe(ctx, r.address); err != nil {
			t.Error(err)
		}
		cancel()
	}
	// A loop that nobody turns: the kernel still takes connections.
	ca := mqtttest.NewCA(t)
	dead, err := New(Config{TLS: &tls.Config{Certificates: []tls.Certificate{ca.Server(t)}}}, newRecorder(ca), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := dead.Probe(ctx, ln.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a broker that accepts nobody: %v", err)
	}
}
