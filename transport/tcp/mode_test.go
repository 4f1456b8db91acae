package tcp

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Both ends learn the mode that was agreed on, and whether they showed an
// identity: the protocol above binds the one and asks for the other. req: C3
func TestModeOfAConnection(t *testing.T) {
	f := newFleet(t)
	for _, mode := range transport.KeycopyModes() {
		for _, identified := range []bool{true, false} {
			server, client := f.config(t, nil), f.config(t, nil)
			if identified {
				server.Certificate, client.Certificate = f.identity(t, "nav-001", nil), f.identity(t, "nav-002", nil)
			}
			server.Modes, client.Modes = transport.KeycopyModes(), []transport.KeycopyMode{mode}
			served := make(chan transport.KeycopyChannel, 1)
			address := serve(t, server, func(_ context.Context, c *Conn) error { served <- c.Channel(); return nil })
			c, err := Dial(t.Context(), address, client)
			if err != nil {
				t.Fatal(err)
			}
			for name, ch := range map[string]transport.KeycopyChannel{"Source": <-served, "Target": c.Channel()} {
				if ch.Mode != mode || ch.Identified != identified || (ch.Peer != "") != identified {
					t.Errorf("%s, identities %v: %s has %q, %v, %q", mode, identified, name, ch.Mode, ch.Identified, ch.Peer)
				}
			}
			c.Close()
		}
	}
}

// A mode that the Source does not speak ends TLS, is named at both ends, and
// nothing else is agreed on in its place. req: C3
func TestModeThatIsNotSpoken(t *testing.T) {
	f := newFleet(t)
	pake := []transport.KeycopyMode{transport.KeycopyPAKE}
	for _, tt := range []struct{ server, client []transport.KeycopyMode }{
		{nil, []transport.KeycopyMode{transport.KeycopyDirect}},
		{pake, []transport.KeycopyMode{transport.KeycopyKEK}},
		{[]transport.KeycopyMode{transport.KeycopyKEK, transport.KeycopyDirect}, nil},
	} {
		server, client := f.config(t, nil), f.config(t, nil)
		server.Modes, client.Modes = tt.server, tt.client
		refused := make(chan error, 1)
		server.Refused = func(_ string, err error) { refused <- err }
		address := serve(t, server, func(context.Context, *Conn) error { t.Error("served"); return nil })
		c, err := Dial(t.Context(), address, client)
		if !errors.Is(err, transport.KeycopyModeRefused) || c != nil {
			t.Errorf("%v to %v: %v", tt.client, tt.server, err)
		}
		asked := slices.Concat(tt.client, pake)[0]
		select {
		case err := <-refused:
			if !errors.Is(err, transport.KeycopyModeRefused) || !strings.Contains(err.Error(), `"`+string(asked)+`"`) {
				t.Errorf("%v to %v: the Source says %v", tt.client, tt.server, err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the Source says nothing")
		}
	}
}
