package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// vault is an interface with a secret each way.
type vaultParams struct {
	Code     string `json:"code"`
	ReplyKey string `json:"reply_key"`
}

func vault(seen chan<- transport.Sensitive) Interface {
	return Interface{Name: "com.kagimori.vault", Methods: []Method{{
		Name: "Swap", In: vaultParams{}, Out: echo{}, Handle: func(_ context.Context, call *Call) error {
			var in vaultParams
			if err := call.Params(&in); err != nil {
				return err
			}
			code, err := call.Unseal("operator code", in.Code)
			if err != nil {
				return err
			}
			seen <- code
			sealed, err := SealTo(in.ReplyKey, "answer", code)
			if err != nil {
				return err
			}
			return call.Reply(echo{sealed})
		},
	}}}
}

// recorder passes connections on to path and keeps what crosses.
type recorder struct {
	mu  sync.Mutex
	all []byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, p...)
	return len(p), nil
}

func (r *recorder) listen(t *testing.T, path string) string {
	t.Helper()
	l, err := net.Listen("unix", path+".tap")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { l.Close() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", path)
			if err != nil {
				in.Close()
				return
			}
			wg.Go(func() { io.Copy(io.MultiWriter(out, r), in); out.Close() })
			wg.Go(func() { io.Copy(io.MultiWriter(in, r), out); in.Close() })
		}
	})
	return path + ".tap"
}

// TestSecretsCrossSealed records every byte between a verb and its daemon;
// the same recorder finds what is sent in clear.
func TestSecretsCrossSealed(t *testing.T) {
	seen := make(chan transport.Sensitive, 1)
	ts := serve(t, nil, func(ts *testServer) {
		if err := ts.server.add(vault(seen)); err != nil {
			t.Fatal(err)
		}
	})
	var tap recorder
	c, err := Dial(t.Context(), tap.listen(t, ts.path))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	secret := make(transport.Sensitive, 24)
	rand.Read(secret)
	text := hex.EncodeToString(secret)

	sealed, err := c.Seal(t.Context(), "operator code", secret)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := NewReader()
	if err != nil {
		t.Fatal(err)
	}
	var out echo
	if err := c.Call(t.Context(), "com.kagimori.vault.Swap", vaultParams{sealed, reader.Key()}, &out); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, seen, "the secret"); !bytes.Equal(got, secret) {
		t.Error("the daemon got another secret")
	}
	if got, err := reader.Open("answer", out.Text); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("the verb got another secret: %v", err)
	}
	inClear := func() bool {
		tap.mu.Lock()
		defer tap.mu.Unlock()
		return bytes.Contains(tap.all, secret) || bytes.Contains(tap.all, []byte(text)) ||
			bytes.Contains(tap.all, []byte(base64.StdEncoding.EncodeToString(secret)))
	}
	if inClear() {
		t.Error("the secret crossed in clear")
	}
	if err := c.Call(t.Context(), "com.kagimori.test.Echo", echo{text}, nil); err != nil {
		t.Fatal(err)
	}
	if !inClear() {
		t.Error("the recorder does not find what crossed in clear")
	}
}

func TestSealIsBound(t *testing.T) {
	a, _ := NewReader()
	b, _ := NewReader()
	sealed, err := SealTo(a.Key(), "code", transport.Sensitive("1234"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Open("code", sealed); err != nil || string(got) != "1234" {
		t.Errorf("%v, %v", []byte(got), err)
	}
	for name, open := range map[string]func() (transport.Sensitive, error){
		"other reader": func() (transport.Sensitive, error) { return b.Open("code", sealed) },
		"other label":  func() (transport.Sensitive, error) { return a.Open("passphrase", sealed) },
		"cut":          func() (transport.Sensitive, error) { return a.Open("code", sealed[:len(sealed)-4]) },
		"empty":        func() (transport.Sensitive, error) { return a.Open("code", "") },
		"not base64":   func() (transport.Sensitive, error) { return a.Open("code", "?"+sealed) },
		"too long":     func() (transport.Sensitive, error) { return a.Open("code", string(make([]byte, 2*MaxSecret))) },
	} {
		if got, err := open(); !errors.Is(err, &Problem{Kind: BadInput}) || got != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, key := range []string{"", "AAAA", a.Key()[1:], base64.StdEncoding.EncodeToString(make([]byte, 32))} {
		if _, err := SealTo(key, "code", nil); !errors.Is(err, &Problem{Kind: BadInput}) {
			t.Errorf("key %q: %v", key, err)
		}
	}
	if _, err := SealTo(a.Key(), "code", make([]byte, MaxSecret+1)); !errors.Is(err, &Problem{Kind: BadInput}) {
		t.Errorf("too long: %v", err)
	}
}

// TestKeyBelongsToItsConnection: what was sealed to one connection's key does
// not open on another.
func TestKeyBelongsToItsConnection(t *testing.T) {
	seen := make(chan transport.Sensitive, 1)
	ts := serve(t, nil, func(ts *testServer) {
		if err := ts.server.add(vault(seen)); err != nil {
			t.Fatal(err)
		}
	})
	a, b, fresh := ts.dial(t), ts.dial(t), ts.dial(t)
	sealed, err := a.Seal(t.Context(), "operator code", transport.Sensitive("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Seal(t.Context(), "operator code", transport.Sensitive("x")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Client{b, fresh} {
		if err := c.Call(t.Context(), "com.kagimori.vault.Swap", vaultParams{Code: sealed}, nil); !errors.Is(err, &Problem{Kind: BadInput}) {
			t.Errorf("replayed on another connection: %v", err)
		}
	}
}
