package gate

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// crlServer stands in for the management server's /crl/<issuer>.
type crlServer struct {
	*httptest.Server
	mu     sync.Mutex
	answer http.HandlerFunc // guarded by mu
	asked  atomic.Int64
}

func newCRLServer(t *testing.T) *crlServer {
	t.Helper()
	s := &crlServer{answer: http.NotFound}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.mu.Lock()
		answer := s.answer
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *crlServer) serve(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func bytesOf(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(data) }
}

func (h *house) number() int64 {
	lists, _ := h.gate.crls.status(h.gate.now())
	if len(lists) == 0 {
		return -1
	}
	return lists[0].Number
}

// A list too large to be pushed is announced and fetched; the terminals on it
// are out within a second all the same.
//
// req: L10
func TestAnAnnouncedListIsFetched(t *testing.T) {
	server := newCRLServer(t)
	h := newHouse(t)
	cred := h.credential(t, "maps", "cr-1")
	c := h.dial(cred)
	eventually(t, "a connection", time.Second, func() bool { return h.gate.Status().Connections == 1 })
	server.serve(bytesOf(h.service.list(t, 2, cred)))
	began := time.Now()
	if err := h.send(&transport.ServiceRevoked{Number: 2, URL: server.URL + "/crl/service", Issuer: h.service.cert.Raw}); err != nil {
		t.Fatal(err)
	}
	if err := gone(c); err != nil || time.Since(began) > promptly {
		t.Errorf("dropped after %s: %v", time.Since(began), err)
	}
	if n := h.number(); n != 2 {
		t.Errorf("list number %d", n)
	}
}

func TestListsAreFetchedFromTimeToTime(t *testing.T) {
	server := newCRLServer(t)
	h := buildHouse(t, Config{Upstream: "http://127.0.0.1:1", CRLFetch: 50 * time.Millisecond})
	server.serve(bytesOf(h.service.list(t, 1)))
	if err := h.send(&transport.ServiceRevoked{Number: 1, URL: server.URL, Issuer: h.service.cert.Raw}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "number 1", 5*time.Second, func() bool { return h.number() == 1 })
	server.serve(bytesOf(h.service.list(t, 2)))
	eventually(t, "number 2", 5*time.Second, func() bool { return h.number() == 2 })
}

// After the gate was told of a list it tries until it has it, and nothing that
// a server answers instead is taken.
func TestFetchesThatBringNothing(t *testing.T) {
	t.Parallel()
	server := newCRLServer(t)
	h := newHouse(t)
	elsewhere := httptest.NewServer(bytesOf(h.service.list(t, 9)))
	defer elsewhere.Close()
	get := func() error {
		_, err := h.gate.fetcher.get(t.Context(), server.URL, nil)
		return err
	}
	for name, answer := range map[string]http.HandlerFunc{
		"redirect":     http.RedirectHandler(elsewhere.URL, http.StatusFound).ServeHTTP,
		"not found":    http.NotFound,
		"error":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"no content":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"too large":    func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, io.LimitReader(zeros{}, transport.MaxCRL+1)) },
		"endless":      func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, zeros{}) },
		"large header": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 2*maxHeader)) },
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "99")
			w.Write([]byte{1})
		},
		"hangs up":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"asks for login": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
	} {
		server.serve(answer)
		if err := get(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// Garbage, and an old list: refused by intake, told in status, tried again.
	for _, c := range []struct{ data []byte }{{[]byte("garbage")}, {newDeployment(t, "demo").service.list(t, 3)}, {h.service.list(t, 0)}} {
		server.serve(bytesOf(c.data))
		asked := server.asked.Load()
		if err := h.send(&transport.ServiceRevoked{Number: 3, URL: server.URL, Issuer: h.service.cert.Raw}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "asked twice", 10*time.Second, func() bool { return server.asked.Load() >= asked+1 })
		if n := h.number(); n != 1 {
			t.Errorf("number %d is taken", n)
		}
	}
	h.logs("revocation list not fetched")
	server.serve(bytesOf(h.service.list(t, 3)))
	eventually(t, "number 3, tried again by itself", 20*time.Second, func() bool { return h.number() == 3 })
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAddressesThatAreNotFetched(t *testing.T) {
	for _, address := range []string{"ftp://host/crl", "file:///etc/passwd", "http://", "http://user:secret@host/", "//host/crl", "/crl", "http://host/#x", "gopher://x", "http://host/" + strings.Repeat("x", maxURL)} {
		if err := checkURL(address); err == nil {
			t.Errorf("%.40q accepted", address)
		}
	}
	for _, address := range []string{"", "http://192.0.2.1:8880/crl/service", "https://kagimori.example/crl/service"} {
		if err := checkURL(address); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
}
