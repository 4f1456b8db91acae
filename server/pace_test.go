package server

import (
	"bytes"
	"crypto/rand"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A terminal decides neither how long nor how many the lines of the log are.
func TestTerminalsDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	now := time.Unix(1e9, 0)
	s := &Server{log: slog.New(slog.NewTextHandler(&log, nil)), cfg: Config{Now: func() time.Time { return now }}}
	ses, err := newSession(rand.Reader, "nav-001", transport.DeviceID{})
	if err != nil {
		t.Fatal(err)
	}
	complain := func(text string) outcome {
		payload, err := transport.Pack(rand.Reader, now, nil, &transport.Fault{Code: transport.FaultLater, Text: text})
		if err != nil {
			t.Fatal(err)
		}
		_, out, err := s.answer(t.Context(), ses, payload)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for range 1000 {
		complain("why")
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines at once, want 1", n)
	}
	now = now.Add(logPause)
	complain("why")
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d lines after a pause, want 2", n)
	}
	out := complain(strings.Repeat("x", transport.MaxDetail+1))
	if f, ok := out.reply.(*transport.Fault); !ok || f.Code != transport.FaultMalformed {
		t.Errorf("a long text: %+v", out.reply)
	}
}
