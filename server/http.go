package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
)

// Plain HTTP serves what is public: /crl/<issuer>, the signed revocation lists
// (RFC 5280 §4.2.1.13 asks for http), and /healthz. Nothing else is here.

const (
	httpConnections = 256     // at once
	httpFrom        = 16      // of them from one address
	httpHeader      = 8 << 10 // bytes of a request's header
	httpHeaderRead  = 3 * time.Second
	httpRead        = 10 * time.Second
	httpWrite       = 30 * time.Second
	httpIdle        = 30 * time.Second
	httpStop        = 5 * time.Second // how long requests may go on when the server stops

	// crlFresh is how long a cache may hand out a list without asking again.
	crlFresh = time.Minute
	// healthFresh is how long a finding about the server's health is repeated:
	// whoever asks must not make it write.
	healthFresh = 5 * time.Second
)

func (s *Server) serveHTTP(ctx context.Context, l net.Listener) error {
	door := newWebDoor(l)
	h := &http.Server{
		Handler: door.busy(s), ConnContext: door.remember, ReadHeaderTimeout: httpHeaderRead, ReadTimeout: httpRead, WriteTimeout: httpWrite, IdleTimeout: httpIdle,
		MaxHeaderBytes: httpHeader, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpStop)
		defer cancel()
		err := h.Shutdown(late)
		if err != nil {
			err = h.Close()
		}
		stopped <- err
	})
	err := h.Serve(door)
	if !stop() {
		return <-stopped
	}
	return errors.Join(err, h.Close())
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	if r.URL.Path == "/healthz" {
		s.serveHealth(w, r)
		return
	}
	if issuer, ok := strings.CutPrefix(r.URL.Path, "/crl/"); ok && slices.Contains(ca.Issuers(), issuer) {
		s.serveCRL(w, r, issuer)
		return
	}
	http.NotFound(w, r)
}

func (s *Server) serveCRL(w http.ResponseWriter, r *http.Request, issuer string) {
	var list store.CRL
	err := s.store.View(r.Context(), func(tx *store.Tx) (err error) {
		list, err = tx.CRL(issuer)
		return err
	})
	if err != nil {
		s.log.Error("revocation list is not served", "issuer", issuer, "err", err)
		http.Error(w, "not available now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl") // RFC 2585 §4.2
	w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(crlFresh/time.Second)))
	w.Header().Set("ETag", strconv.Quote(issuer+"-"+strconv.FormatInt(list.Number, 10)))
	http.ServeContent(w, r, "", list.Issued, bytes.NewReader(list.DER))
}

// health is what was found last.
type health struct {
	mqtt atomic.Bool // the broker serves

	mu    sync.Mutex
	at    time.Time // guarded by mu
	store error     // guarded by mu
}

const metaHeartbeat = "heartbeat"

// serveHealth says "ok" only after a write has reached the disk lately.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	switch {
	case s.storeHealth(r.Context()) != nil:
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "the database cannot be written")
	case !s.health.mqtt.Load():
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "mqtt is not served")
	default:
		fmt.Fprintln(w, "ok")
	}
}

func (s *Server) storeHealth(ctx context.Context) error {
	h := &s.health
	h.mu.Lock()
	defer h.mu.Unlock()
	now := s.cfg.Now()
	if age := now.Sub(h.at); age >= 0 && age < healthFresh {
		return h.store
	}
	h.store = s.heartbeat(context.WithoutCancel(ctx))
	h.at = now
	if h.store != nil {
		s.log.Error("the database cannot be written", "err", h.store)
	}
	return h.store
}

// heartbeat writes something to the disk.
func (s *Server) heartbeat(ctx context.Context) error {
	return s.store.Update(ctx, s.by(actorServer), func(tx *store.Tx) error {
		return tx.PutMeta(metaHeartbeat, []byte(tx.By().At.UTC().Format(time.RFC3339)))
	})
}
