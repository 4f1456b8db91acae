package tcp

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// Whether the peer has ended the connection itself, or somebody on the path, or
// a power cut: between two frames as well. A Source forgets how to resume a
// transaction on the first of these only.
func TestClosureInDueForm(t *testing.T) {
	f := newFleet(t)
	for name, tt := range map[string]struct {
		hangUp func(*Conn)
		want   error
	}{
		"close_notify": {func(c *Conn) { c.Close() }, io.EOF},
		"FIN":          {func(c *Conn) { c.tls.NetConn().Close() }, io.ErrUnexpectedEOF},
		"FIN within a frame": {func(c *Conn) {
			_, _ = c.tls.Write(frame(1, nil)[:3])
			c.tls.NetConn().Close()
		}, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan error, 1)
			address := serve(t, f.config(t, nil), func(_ context.Context, c *Conn) error {
				_, err := c.ReadFrame(transport.MaxKeycopyHandshake, transport.KeycopyMessageTimeout)
				if err == nil {
					_, err = c.ReadFrame(transport.MaxKeycopyHandshake, transport.KeycopyMessageTimeout)
				}
				got <- err
				return err
			})
			c, err := Dial(t.Context(), address, f.config(t, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.WriteFrame(transport.KeycopyFrame{Type: 1}, true); err != nil {
				t.Fatal(err)
			}
			tt.hangUp(c)
			if err := <-got; !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}
