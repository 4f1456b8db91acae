package relay

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestGateIsDown(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal("curl is missing: run scripts/setup.sh")
	}
	ca := newCA(t, "ca")
	down := closedPort(t)
	r := newRig(t, ca, Config{}, down)
	post := exec.Command(curl, "-sS", "-w", "%{http_code}", "-d", "@-", "http://"+r.addr+"/")
	post.Stdin = strings.NewReader(strings.Repeat("x", 300_000))
	out, err := post.CombinedOutput()
	got := string(out)
	if err != nil || !strings.HasSuffix(got, "503") || !strings.Contains(got, down+": connect: connection refused") || !strings.Contains(got, "look at the gate") {
		t.Errorf("got %q, %v", got, err)
	}
	head, err := exec.Command(curl, "-sSI", "http://"+r.addr+"/").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(head), "HTTP/1.1 503 ") || !strings.HasSuffix(string(head), "\r\n\r\n") {
		t.Errorf("HEAD: got %q, %v", head, err)
	}
}

// Who does not speak HTTP is not answered in it.
func TestOtherProtocolsAreJustClosed(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, closedPort(t))
	for _, first := range []string{"\x16\x03\x01\x02\x00\x01", "SSH-2.0-x\r\n", "EHLO\r\n", "PRI * HTTP/2.0\r\n\r\n"} {
		c := r.dial(t)
		if _, err := io.WriteString(c, first); err != nil {
			t.Fatal(err)
		}
		closeWrite(c)
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
			t.Errorf("%q: got %q, %v", first, b, err)
		}
	}
}

// A program that waits for the other end to speak first is not kept waiting.
func TestSilentProgramIsClosed(t *testing.T) {
	t.Parallel() // it waits for refuseWait
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, closedPort(t))
	c, start := r.dial(t), time.Now()
	if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if took := time.Since(start); took > 3*refuseWait {
		t.Errorf("it took %v", took)
	}
}

// In TLS 1.3 the gate's refusal arrives after the handshake, and with or after
// the first bytes that the program sent. req: L5
func TestGateRefusesCredential(t *testing.T) {
	ca, foreign := newCA(t, "ca"), newCA(t, "foreign")
	gate := newHTTPGate(t, gateTLS(t, ca, ca))
	r := newRig(t, ca, Config{}, gate.addr)
	good := *r.creds.dialable
	refused := map[string]tls.Certificate{
		"another service": ca.client(t, "music", "cred-1"),
		"a foreign CA":    foreign.client(t, "maps", "cred-1"),
		"none":            {},
	}
	for name, cert := range refused {
		d := good
		d.Certificate = cert
		r.creds.set(&d, nil)
		for range 5 { // the two ends race
			got := r.ask(t)
			if !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "the gate refused credential cr-7q3mz5xk2a: tls: ") || !strings.Contains(got, "kagimori-server credential show cr-7q3mz5xk2a") {
				t.Errorf("%s: got %q", name, got)
			}
		}
		big := r.dial(t) // a long body, which the gate never reads
		go func() {
			_, _ = io.WriteString(big, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n"+strings.Repeat("x", 900_000))
		}()
		res, err := http.ReadResponse(bufio.NewReader(big), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		body, err := io.ReadAll(res.Body)
		if res.StatusCode != 503 || err != nil || !strings.Contains(string(body), "the gate refused credential cr-7q3mz5xk2a") {
			t.Errorf("%s with a long body: %d %q, %v", name, res.StatusCode, body, err)
		}
	}
	if s := r.relay.Status(); s.LastWhy == "" || s.LastTime.IsZero() {
		t.Errorf("refused, and the status does not say why: %+v", s)
	}
	r.creds.set(&good, nil)
	if got := r.ask(t); !strings.Contains(got, "credential cred-1 ") {
		t.Errorf("the good one: got %q", got)
	}
	if s := r.relay.Status(); s.LastWhy != "" || !s.LastTime.IsZero() || s.Refused == 0 {
		t.Errorf("it works, and the status shows an old refusal: %+v", s)
	}
}

// A gate that falls silent is another matter than one that refuses.
func TestGateBreaksBeforeItAnswers(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) {
		_, _ = c.Read(make([]byte, 1))
		reset(c.NetConn())
	}).addr)
	got := r.ask(t)
	if !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "the gate ended the connection before it answered") {
		t.Errorf("got %q", got)
	}
}

// A gate may answer and end before it has read all: the answer arrives.
func TestEarlyAnswerArrives(t *testing.T) {
	ca := newCA(t, "ca")
	const early = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) {
		_, _ = c.Read(make([]byte, 100))
		_, _ = io.WriteString(c, early)
	}).addr)
	for range 5 {
		c := r.dial(t)
		go func() {
			_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n"+strings.Repeat("x", 500_000))
		}()
		b := make([]byte, len(early))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != early {
			t.Errorf("got %q, %v", b, err)
		}
		c.Close()
	}
}

func TestHTTPMethod(t *testing.T) {
	for in, want := range map[string]string{
		"GET / HTTP/1.1\r\n": "GET", "POST ": "POST", "PROPPATCH /a HTTP/1.0": "PROPPATCH", "OPTIONS * HTTP/1.1": "OPTIONS",
		"GET http://x/ HTTP/1.1": "GET", "CONNECT x:443 HTTP/1.1": "CONNECT",
		"": "", "GET": "", "get / HTTP/1.1": "", "GE /": "", "GET  /": "", "GET \r\n": "", " GET /": "", "\x16\x03\x01": "", "PRI * HTTP/2.0": "",
		"ABCDEFGHIJKLMNOPQRSTUVWXYZ / HTTP/1.1": "",
	} {
		if got, ok := httpMethod([]byte(in)); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v", in, got, ok)
		}
	}
}

func TestAnswerIsHTTP(t *testing.T) {
	for _, body := range []string{"short\n", strings.Repeat("ö", maxWhy), "a\r\nSet-Cookie: x\r\n"} {
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(answer("GET", body)))), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil || !strings.HasPrefix(body, string(b)) || len(b) < min(len(body), maxWhy)-2 || len(res.Cookies()) > 0 || !res.Close {
			t.Errorf("got %q, %v, %v", b, err, res.Header)
		}
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(0, 0)
	for i, c := range []struct {
		after  time.Duration
		ok     bool
		unsaid int
	}{{0, true, 0}, {time.Second, false, 0}, {58 * time.Second, false, 0}, {time.Second, true, 2}, {time.Hour, true, 0}} {
		now = now.Add(c.after)
		if ok, unsaid := l.allow(now); ok != c.ok || unsaid != c.unsaid {
			t.Errorf("step %d: got %v, %d", i, ok, unsaid)
		}
	}
}

func FuzzHTTPMethod(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte{0x16, 3, 1})
	f.Fuzz(func(t *testing.T, head []byte) {
		if m, ok := httpMethod(head); ok {
			if _, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(answer(m, string(head))))), nil); err != nil {
				t.Error(errors.Join(err))
			}
		}
	})
}
