package gate

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"
)

// A request on a connection that stands, client and service included.
func BenchmarkRequest(b *testing.B) {
	h := newHouse(b)
	client := h.client(h.credential(b, "maps", "cr-1"))
	for b.Loop() {
		if status, _, err := fetch(client, "https://"+h.address+"/"); err != nil || status != http.StatusOK {
			b.Fatal(status, err)
		}
	}
}

// The same to the service itself, over TLS: what the gate's way costs is the difference.
func BenchmarkRequestWithoutGate(b *testing.B) {
	d := newDeployment(b, "demo")
	service := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	service.TLS = &tls.Config{Certificates: []tls.Certificate{d.gateCertificate(b)}}
	service.StartTLS()
	defer service.Close()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: d.roots, ServerName: "localhost"}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for b.Loop() {
		if _, _, err := fetch(client, service.URL); err != nil {
			b.Fatal(err)
		}
	}
}

// A new connection with one request: two handshakes' halves, and all checks.
func BenchmarkHandshake(b *testing.B) {
	h := newHouse(b)
	config := h.config(h.credential(b, "maps", "cr-1"))
	for b.Loop() {
		if err := h.knock(config); err != nil {
			b.Fatal(err)
		}
	}
}

// What the checks of one handshake cost, and those of one request.
func BenchmarkJudge(b *testing.B) {
	h := newHouse(b)
	chain := []*x509.Certificate{h.credential(b, "maps", "cr-1").Leaf, h.service.cert}
	who, err := h.gate.identify(chain)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("handshake", func(b *testing.B) {
		for b.Loop() {
			h.gate.identify(chain)
		}
	})
	b.Run("request", func(b *testing.B) {
		for b.Loop() {
			h.gate.judge(who, h.gate.now())
		}
	})
}

// Taking in a list of 100,000 entries, signature and all.
func BenchmarkLargeList(b *testing.B) {
	d := newDeployment(b, "demo")
	tmpl := &x509.RevocationList{}
	for i := range 100_000 {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serialNumber(i), RevocationTime: time.Now(), ReasonCode: 1})
	}
	tmpl.Number = big.NewInt(1)
	der := d.service.listWith(b, tmpl)
	by := mustIssuer(b, d, d.service)
	b.SetBytes(int64(len(der)))
	for b.Loop() {
		if _, err := parseCRL(der, by, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

// Memory of a connection that only stands there, both ends of it.
func BenchmarkIdleConnection(b *testing.B) {
	h := buildHouse(b, Config{Upstream: "http://127.0.0.1:1", MaxPerCredential: 1 << 20, MaxSessions: 1 << 20})
	h.push(1)
	cred := h.credential(b, "maps", "cr-1")
	const count = 500
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		var open []io.Closer
		for range count {
			open = append(open, h.dial(cred))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/count, "B/conn")
		for _, c := range open {
			c.Close()
		}
	}
}
