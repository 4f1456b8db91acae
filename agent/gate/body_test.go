package gate

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// deadlines is a ResponseWriter that remembers the last read deadline.
type deadlines struct {
	*httptest.ResponseRecorder
	last time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.last = t; return nil }

// closing is a request body as the HTTP server's: read after Close, it fails.
type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Read(p []byte) (int, error) {
	if c.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return c.Reader.Read(p)
}

func (c *closing) Close() error { c.closed = true; return nil }

// The transport asks once more after the last byte. The HTTP server may have
// closed the body by then; that must not look like a failed request, nor leave
// a deadline behind that would cut the answer off.
func TestBodyEndsOnce(t *testing.T) {
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	under := &closing{Reader: strings.NewReader("picture")}
	b := &body{ReadCloser: under, control: http.NewResponseController(w), session: &session{}}
	if got, err := io.ReadAll(b); string(got) != "picture" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	under.Close()
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v past the end, want EOF", n, err)
	}
	if !w.last.IsZero() {
		t.Errorf("a read deadline is left behind: %v", w.last)
	}
	if b.session.stalled.Load() {
		t.Error("it counts as stalled")
	}
}
