package server

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/ca"
)

func (r *rig) get(path string, header ...string) (*http.Response, []byte) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), "GET", "http://"+r.http+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res, body
}

func TestRevocationListsAreServed(t *testing.T) {
	r := newRig(t)
	if err := r.s.renewLists(t.Context()); err != nil { // init's lists are short-lived
		t.Fatal(err)
	}
	for _, issuer := range ca.Issuers() {
		res, body := r.get("/crl/" + issuer)
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/pkix-crl" || res.Header.Get("ETag") == "" || res.Header.Get("Last-Modified") == "" {
			t.Errorf("%s: %v", issuer, res)
		}
		list, err := x509.ParseRevocationList(body)
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(r.s.ca.Certificate(issuer)); err != nil || !list.NextUpdate.After(r.now()) || list.ThisUpdate.After(r.now()) {
			t.Errorf("%s: %v, from %v to %v", issuer, err, list.ThisUpdate, list.NextUpdate)
		}
		if res, body := r.get("/crl/"+issuer, "If-None-Match", res.Header.Get("ETag")); res.StatusCode != 304 || len(body) > 0 {
			t.Errorf("%s: %d for what the client has", issuer, res.StatusCode)
		}
	}
}

func TestNothingElseIsServed(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/", "/crl", "/crl/", "/crl/nobody", "/crl/../healthz/", "/healthz/", "/server.db", "/debug/pprof/", "/crl/service/x"} {
		if res, _ := r.get(path); res.StatusCode != 404 {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH"} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.http+"/crl/service", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, res.StatusCode)
		}
	}
	if res, body := r.get("/healthz"); res.StatusCode != 200 || string(body) != "ok\n" {
		t.Errorf("%d %q", res.StatusCode, body)
	}
}

func TestHTTPHeadersAreBounded(t *testing.T) {
	r := newRig(t)
	c, err := net.Dial("tcp", r.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 1<<20))
	c.SetReadDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "431") {
		t.Errorf("%q, %v", line, err)
	}
}

// The server says that it cannot write, and that it can again.
func TestHealthIsHonest(t *testing.T) {
	r := newRig(t)
	release := r.blockDisk()
	if res, body := r.get("/healthz"); res.StatusCode != 503 {
		t.Errorf("%d %q while nothing can be written", res.StatusCode, body)
	}
	release()
	r.advance(healthFresh)
	if res, body := r.get("/healthz"); res.StatusCode != 200 {
		t.Errorf("%d %q when it can be written again", res.StatusCode, body)
	}
}

func TestListsAreRenewedInTime(t *testing.T) {
	r := newRig(t)
	number := func() (n int64) {
		_, body := r.get("/crl/identity")
		list, err := x509.ParseRevocationList(body)
		if err != nil {
			t.Fatal(err)
		}
		return list.Number.Int64()
	}
	if err := r.s.renewLists(t.Context()); err != nil { // init's lists are short-lived
		t.Fatal(err)
	}
	before := number()
	if err := r.s.renewLists(t.Context()); err != nil || number() != before {
		t.Errorf("renewed before its time: %v", err)
	}
	r.advance(13 * time.Hour) // more than half of a day
	if err := r.s.renewLists(t.Context()); err != nil || number() != before+1 {
		t.Errorf("not renewed: number %d after %d, %v", number(), before, err)
	}
}

func TestOwnCertificateIsRenewedInTime(t *testing.T) {
	r := newRig(t)
	own := r.s.own.Load()
	if err := r.s.renewOwn(t.Context()); err != nil || r.s.own.Load() != own {
		t.Errorf("renewed before its time: %v", err)
	}
	r.advance(250 * 24 * time.Hour)
	if err := r.s.renewOwn(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh := r.s.own.Load()
	if fresh == own || fresh.Leaf.SerialNumber.Cmp(own.Leaf.SerialNumber) == 0 || !fresh.Leaf.NotAfter.After(own.Leaf.NotAfter) {
		t.Error("not renewed")
	}
	for _, host := range []string{"127.0.0.1", "server.test"} {
		if err := fresh.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
}
