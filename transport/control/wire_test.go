package control

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestWire gives golden messages both ways, and what is refused. [CTL-1, CTL-3, CTL-7]
func TestWire(t *testing.T) {
	const refusal = `{"parameters":{"kind":"bad-input","message":"call: %s"},"error":"com.kagimori.Problem"}`
	ts := serve(t, nil, nil)
	for _, c := range []struct {
		say, hear string
		open      bool // the connection goes on
	}{
		{`{"method":"com.kagimori.test.Echo","parameters":{"text":"é"}}`, `{"parameters":{"text":"é"}}`, true},
		{`{"method":"com.kagimori.test.Silent"}`, `{"parameters":{}}`, true},
		{`{"method":"com.kagimori.test.Silent","parameters":null}`, `{"parameters":{}}`, true},
		{`{"method":"com.kagimori.test.Count"}`, `{"parameters":{},"error":"org.varlink.service.ExpectedMore"}`, true},
		{`{"method":"a.b.C"}`, `{"parameters":{"interface":"a.b"},"error":"org.varlink.service.InterfaceNotFound"}`, true},
		{`{"method":"com.kagimori.test.No"}`, `{"parameters":{"method":"com.kagimori.test.No"},"error":"org.varlink.service.MethodNotFound"}`, true},
		{`{"method":"org.varlink.service.GetInfo"}`, `{"parameters":{"vendor":"Kagimori","product":"test","version":"1","url":"https://github.com/kagimori/kagimori","interfaces":["org.varlink.service","com.kagimori","com.kagimori.test"]}}`, true},
		{`{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"x.y"}}`, `{"parameters":{"interface":"x.y"},"error":"org.varlink.service.InterfaceNotFound"}`, true},
		{`{"method":"com.kagimori.test.Fail"}`, `{"parameters":{"kind":"internal","message":"plain"},"error":"com.kagimori.Problem"}`, true},

		{``, fmt.Sprintf(refusal, "not JSON: it ends too early"), false},
		{`{"method":"Echo"}`, fmt.Sprintf(refusal, "method \\\"Echo\\\" is not interface.Method"), false},
		{`{"method":"a.b.C","method":"a.b.C"}`, fmt.Sprintf(refusal, "`method` is given twice"), false},
		{`{"Method":"a.b.C"}`, fmt.Sprintf(refusal, "unknown `Method`; known here: method, more, oneway, parameters, upgrade"), false},
		{`{"method":"a.b.C"}{}`, fmt.Sprintf(refusal, "there is more after the object"), false},
		{`{"method":3}`, fmt.Sprintf(refusal, "`method` cannot be a number"), false},
		{`{"method":"a.b.C","upgrade":true}`, fmt.Sprintf(refusal, "upgrade is not offered"), false},
		{"{\"method\":\"a.b.\xff\"}", fmt.Sprintf(refusal, "not UTF-8"), false},
		{`{"method":"a.b.C","parameters":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`, fmt.Sprintf(refusal, "nested deeper than 16"), false},
	} {
		conn := ts.raw(t)
		conn.say(c.say + "\x00")
		if got := conn.hear(); got != c.hear {
			t.Errorf("said %q, heard\n%s\nwant\n%s", c.say, got, c.hear)
			continue
		}
		if !c.open {
			if more := conn.hear(); more != "" {
				t.Errorf("said %q, the connection goes on: %q", c.say, more)
			}
			continue
		}
		conn.say(`{"method":"com.kagimori.test.Silent"}` + "\x00")
		if got := conn.hear(); got != `{"parameters":{}}` {
			t.Errorf("after %q the connection does not go on: %q", c.say, got)
		}
	}
}

func TestOneway(t *testing.T) {
	conn := serve(t, nil, nil).raw(t)
	conn.say(`{"method":"com.kagimori.test.Echo","oneway":true,"parameters":{"text":"a"}}` + "\x00")
	conn.say(`{"method":"com.kagimori.test.Echo","parameters":{"text":"b"}}` + "\x00")
	if got := conn.hear(); got != `{"parameters":{"text":"b"}}` {
		t.Errorf("heard %s", got)
	}
}

// TestOversize [CTL-1]: the caller is told, and nothing more is read from him.
func TestOversize(t *testing.T) {
	ts := serve(t, nil, nil)
	conn := ts.raw(t)
	largest := `{"method":"com.kagimori.test.Silent"` + strings.Repeat(" ", MaxMessage-len(`{"method":"com.kagimori.test.Silent"}`)) + "}"
	conn.say(largest + "\x00")
	if got := conn.hear(); got != `{"parameters":{}}` {
		t.Fatalf("a message of %d bytes: %s", len(largest), got)
	}
	conn = ts.raw(t)
	go conn.Write([]byte(strings.Repeat("x", 4*MaxMessage))) // fails on the way
	if got := conn.hear(); !strings.Contains(got, "longer than 262144 bytes") {
		t.Fatalf("an endless message: %s", got)
	}
	if more := conn.hear(); more != "" {
		t.Fatalf("the connection goes on: %q", more)
	}
}

// TestSlowCallers [CTL-6]: one stops in the middle of a message, one does not
// read, one asks nothing.
func TestSlowCallers(t *testing.T) {
	ts := serve(t, nil, func(ts *testServer) { ts.server.time = timing{frame: 200 * time.Millisecond, idle: time.Second} })
	conn := ts.raw(t)
	conn.say(`{"method":`)
	if got := conn.hear(); !strings.Contains(got, "not finished within 200ms") {
		t.Errorf("half a message: %s", got)
	}
	conn = ts.raw(t)
	conn.say(`{"method":"com.kagimori.test.Flood","more":true}` + "\x00")
	if err := receive(t, ts.ended, "the flood's end"); !isTimeout(err) {
		t.Errorf("flood ended with %v", err)
	}
	conn = ts.raw(t)
	if got := conn.hear(); got != "" { // returns when the daemon hangs up
		t.Errorf("an idle caller heard %s", got)
	}
}

// TestPipelining [CTL-2]: one call runs, one waits, a third is too many.
func TestPipelining(t *testing.T) {
	ts := serve(t, nil, nil)
	conn := ts.raw(t)
	const wait, silent = `{"method":"com.kagimori.test.Wait"}` + "\x00", `{"method":"com.kagimori.test.Silent"}` + "\x00"
	conn.say(wait)
	receive(t, ts.started, "the first call")
	conn.say(silent)
	close(ts.free)
	if a, b := conn.hear(), conn.hear(); a != `{"parameters":{"text":"waited"}}` || b != `{"parameters":{}}` {
		t.Errorf("two calls: %s, %s", a, b)
	}

	ts = serve(t, nil, nil)
	conn = ts.raw(t)
	conn.say(wait)
	receive(t, ts.started, "the first call")
	conn.say(silent + silent)
	if got := receive(t, ts.log, "the log"); !strings.Contains(got, "breaks the rules") {
		t.Error(got)
	}
	close(ts.free)
	conn.hear()
	conn.hear()
	if got := conn.hear(); !strings.Contains(got, "more than 1 calls wait") {
		t.Errorf("three calls: %s", got)
	}
}

// TestHangUp [CTL-5]: closing ends the call's context, half a close does not.
func TestHangUp(t *testing.T) {
	ts := serve(t, nil, nil)
	conn := ts.raw(t)
	conn.say(`{"method":"com.kagimori.test.Wait"}` + "\x00")
	receive(t, ts.started, "the call")
	conn.Close()
	receive(t, ts.ended, "the context's end after a close")

	conn = ts.raw(t)
	conn.say(`{"method":"com.kagimori.test.Wait"}` + "\x00")
	receive(t, ts.started, "the call")
	conn.CloseWrite()
	select {
	case err := <-ts.ended:
		t.Fatalf("half a close ended the call: %v", err)
	case <-time.After(3 * hangupPoll):
	}
	conn.Close()
	receive(t, ts.ended, "the context's end after half a close and a close")

	conn = ts.raw(t)
	conn.say(`{"method":"com.kagimori.test.Wait"}` + "\x00")
	receive(t, ts.started, "the call")
	conn.CloseWrite()
	close(ts.free)
	if got := conn.hear(); got != `{"parameters":{"text":"waited"}}` {
		t.Fatalf("after half a close: %s", got)
	}
}

// TestStop: running calls are told, and Serve ends only after them.
func TestStop(t *testing.T) {
	ts := serve(t, nil, nil)
	c := ts.dial(t)
	idle := ts.raw(t)
	answer := make(chan error, 1)
	go func() { answer <- c.Call(t.Context(), "com.kagimori.test.Wait", nil, nil) }()
	receive(t, ts.started, "the call")
	ts.stop()
	err := receive(t, answer, "the answer")
	if p := AsProblem(err); !errors.Is(err, &Problem{Kind: Unavailable}) || p.Message != "the daemon is stopping" {
		t.Errorf("a running call got %v", err)
	}
	if got := idle.hear(); got != "" {
		t.Errorf("an idle caller heard %s", got)
	}
}
