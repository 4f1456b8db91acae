package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// echo is what the test interface says and hears.
type echo struct {
	Text string `json:"text"`
}

// testServer is a daemon with one interface, com.kagimori.test.
type testServer struct {
	path    string
	server  *Server
	started chan struct{} // a Wait call has begun
	ended   chan error    // what ended it
	free    chan struct{} // closed: Wait answers
	stop    func()        // ends Serve and waits for it
	log     lines
}

// lines hands out what is logged.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

// serve runs one; tweak may change it before it serves.
func serve(t *testing.T, operators []string, tweak func(*testServer)) *testServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // other users come in too
		t.Fatal(err)
	}
	access, err := NewAccess(operators)
	if err != nil {
		t.Fatal(err)
	}
	ts := &testServer{
		path:    filepath.Join(dir, "control.sock"),
		started: make(chan struct{}, 8), ended: make(chan error, 8), free: make(chan struct{}), log: make(lines, 64),
	}
	ts.server, err = New(Options{Product: "test", Version: "1", Access: access}, slog.New(slog.NewTextHandler(ts.log, nil)), ts.table())
	if err != nil {
		t.Fatal(err)
	}
	if tweak != nil {
		tweak(ts)
	}
	l, err := Listen(ts.path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ts.server.Serve(ctx, l) }()
	ts.stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
			done <- nil
		case <-time.After(patience):
			t.Error("Serve does not end")
		}
	}
	t.Cleanup(ts.stop)
	return ts
}

func (ts *testServer) table() Interface {
	reply := func(_ context.Context, call *Call) error { return call.Reply(echo{call.Class.String()}) }
	return Interface{Name: "com.kagimori.test", Doc: "A test.", Methods: []Method{
		{Name: "Echo", Doc: "Says the text again.", In: echo{}, Out: echo{}, Handle: func(_ context.Context, call *Call) error {
			var in echo
			if err := call.Params(&in); err != nil {
				return err
			}
			return call.Reply(in)
		}},
		{Name: "Look", Class: Read, Out: echo{}, Handle: reply},
		{Name: "Operate", Class: Operate, Out: echo{}, Handle: reply},
		{Name: "Rule", Class: Admin, Out: echo{}, Handle: reply},
		{Name: "Silent", Handle: func(context.Context, *Call) error { return nil }},
		{Name: "Wait", Out: echo{}, Handle: ts.wait},
		{Name: "Count", Out: echo{}, Stream: true, Handle: func(_ context.Context, call *Call) error {
			for i := range 3 {
				if err := call.Continue(echo{fmt.Sprint(i)}); err != nil {
					return err
				}
			}
			return call.Reply(echo{"end"})
		}},
		{Name: "Flood", Out: echo{}, Stream: true, Handle: func(_ context.Context, call *Call) error {
			for {
				if err := call.Continue(echo{strings.Repeat("x", 100_000)}); err != nil {
					ts.ended <- err
					return err
				}
			}
		}},
		{Name: "Big", Out: echo{}, Handle: func(_ context.Context, call *Call) error {
			return call.Reply(echo{strings.Repeat("x", MaxMessage)})
		}},
		{Name: "Fail", In: echo{}, Handle: func(_ context.Context, call *Call) error {
			var in echo
			if err := call.Params(&in); err != nil {
				return err
			}
			if in.Text == "" {
				return errors.New("plain")
			}
			return fmt.Errorf("while testing: %w", Problemf(NotFound, "look elsewhere", "no %s here", in.Text))
		}},
	}}
}

// wait answers when the test says so, or fails when its context ends.
func (ts *testServer) wait(ctx context.Context, call *Call) error {
	ts.started <- struct{}{}
	select {
	case <-ts.free:
		return call.Reply(echo{"waited"})
	case <-ctx.Done():
		ts.ended <- ctx.Err()
		return ctx.Err()
	}
}

// dial connects with our client.
func (ts *testServer) dial(t *testing.T) *Client {
	t.Helper()
	c, err := Dial(t.Context(), ts.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// rawConn is a caller that writes what it likes.
type rawConn struct {
	*net.UnixConn
	t *testing.T
	r *bufio.Reader
}

func (ts *testServer) raw(t *testing.T) rawConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: ts.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return rawConn{c, t, bufio.NewReader(c)}
}

func (c rawConn) say(s string) {
	c.t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// hear returns the next message, "" at the end.
func (c rawConn) hear() string {
	s, err := c.r.ReadString(0)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(s, "\x00")
}

func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

func TestCall(t *testing.T) {
	ts := serve(t, nil, nil)
	c := ts.dial(t)
	var out echo
	if err := c.Call(t.Context(), "com.kagimori.test.Echo", echo{"hello"}, &out); err != nil || out.Text != "hello" {
		t.Fatalf("Echo: %+v, %v", out, err)
	}
	if err := c.Call(t.Context(), "com.kagimori.test.Silent", nil, nil); err != nil {
		t.Fatal(err)
	}
	var heard []string
	err := c.Stream(t.Context(), "com.kagimori.test.Count", nil, func(raw json.RawMessage) error {
		var e echo
		err := json.Unmarshal(raw, &e)
		heard = append(heard, e.Text)
		return err
	})
	if got := strings.Join(heard, " "); err != nil || got != "0 1 2 end" {
		t.Fatalf("Count: %q, %v", got, err)
	}
	for _, c := range []struct {
		method string
		in     any
		want   Problem
	}{
		{"com.kagimori.test.Fail", echo{}, Problem{Kind: Internal, Message: "plain"}},
		{"com.kagimori.test.Fail", echo{"key"}, Problem{Kind: NotFound, Message: "while testing: no key here", Next: "look elsewhere"}},
		{"com.kagimori.test.Echo", map[string]string{"txet": "x"}, Problem{Kind: BadInput, Message: "parameters of com.kagimori.test.Echo: unknown `txet`; known here: text", Next: "see the method's definition: org.varlink.service.GetInterfaceDescription"}},
		{"com.kagimori.test.Big", nil, Problem{Kind: Internal, Message: "the message has 262170 bytes, the limit is 262144", Next: "ask for less at once"}},
	} {
		err := ts.dial(t).Call(t.Context(), c.method, c.in, nil)
		got := AsProblem(err)
		if got == nil || got.Kind != c.want.Kind || got.Message != c.want.Message || got.Next != c.want.Next {
			t.Errorf("%s: %+v, want %+v", c.method, got, c.want)
		}
	}
	for method, kind := range map[string]Kind{
		"com.kagimori.test.Nothing": Unavailable,
		"com.kagimori.nobody.Echo":  Unavailable,
		"com.kagimori.test.Count":   Usage, // without more
	} {
		if err := c.Call(t.Context(), method, nil, nil); !errors.Is(err, &Problem{Kind: kind}) {
			t.Errorf("%s: %v, want kind %s", method, err, kind)
		}
	}
	// All of that on one connection, which still works.
	if err := c.Call(t.Context(), "com.kagimori.test.Echo", echo{"again"}, &out); err != nil || out.Text != "again" {
		t.Fatalf("Echo: %+v, %v", out, err)
	}
}

// TestForeignPeer shows that any language can speak it: here the shell.
func TestForeignPeer(t *testing.T) {
	ts := serve(t, nil, nil)
	const script = `printf '{"method":"com.kagimori.test.Echo","parameters":{"text":"hello"}}\0' | socat -t 5 - "UNIX-CONNECT:$1" | tr '\0' '\n'`
	out, err := exec.Command("sh", "-c", needs(t, "socat", script), "sh", ts.path).CombinedOutput()
	if want := `{"parameters":{"text":"hello"}}` + "\n"; err != nil || string(out) != want {
		t.Fatalf("got %q, %v, want %q", out, err, want)
	}
}

// needs fails a test whose tool is missing and returns value.
func needs(t *testing.T, tool, value string) string {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing: run scripts/setup.sh", tool)
	}
	return value
}

func TestNewRefusesBadTables(t *testing.T) {
	handle := func(context.Context, *Call) error { return nil }
	type list struct {
		Secret chan int `json:"secret"`
	}
	for name, i := range map[string]Interface{
		"name":      {Name: "test"},
		"twice":     {Name: "com.kagimori"},
		"method":    {Name: "com.kagimori.x", Methods: []Method{{Name: "lower", Handle: handle}}},
		"no handle": {Name: "com.kagimori.x", Methods: []Method{{Name: "A"}}},
		"doubled":   {Name: "com.kagimori.x", Methods: []Method{{Name: "A", Handle: handle}, {Name: "A", Handle: handle}}},
		"type":      {Name: "com.kagimori.x", Methods: []Method{{Name: "A", In: list{}, Handle: handle}}},
		"no struct": {Name: "com.kagimori.x", Methods: []Method{{Name: "A", In: 3, Handle: handle}}},
	} {
		if _, err := New(Options{}, slog.New(slog.DiscardHandler), i); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
