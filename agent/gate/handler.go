package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"sync"
	"time"
)

// The way of a request from an admitted connection to the service.

type sessionKey struct{}

func (g *Gate) newServer(ctx context.Context) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           g.handler,
		Protocols:         protocols,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelWarn),
		// "OPTIONS *" is asked the same as everything else.
		DisableGeneralOptionsHandler: true,
		// Requests outlive ctx for shutdownGrace.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return newSessionContext(ctx, c.(*tls.Conn).NetConn().(*session))
		},
	}
}

func (g *Gate) newHandler(up *upstream) http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(p *httputil.ProxyRequest) { rewrite(p, up) },
		Transport:    up.transport,
		ErrorHandler: g.failed,
		ErrorLog:     slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		BufferPool:   &buffers{},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := sessionOf(r)
		if r.ContentLength != 0 {
			r.Body = newBody(w, r)
		}
		reason := g.judge(s.who, g.now())
		if reason == Admitted && (r.Method == http.MethodConnect || r.Method == http.MethodTrace) {
			reason = Method
		}
		if reason != Admitted {
			g.counts.refused(r.Context(), reason, "request refused", s.RemoteAddr(), s.who, nil)
			refuse(w, reason, true)
			return
		}
		s.passed.Store(true)
		g.counts.pass()
		clean(r.Header)
		tame(r.Header)
		proxy.ServeHTTP(w, r)
	})
}

func newSessionContext(ctx context.Context, s *session) context.Context {
	return context.WithValue(ctx, sessionKey{}, s)
}

func sessionOf(r *http.Request) *session { return r.Context().Value(sessionKey{}).(*session) }

// rewrite aims a request at the service. It runs after the hop-by-hop headers
// are gone, so that "Connection: Kagimori-Credential" takes nothing away from
// what is set here.
func rewrite(p *httputil.ProxyRequest, up *upstream) {
	p.SetURL(up.base)
	p.SetXForwarded()
	p.Out.URL.RawQuery = p.In.URL.RawQuery // as it came: nothing here goes by it
	p.Out.Trailer = nil                    // or else their names were announced; their values do not pass
	who := sessionOf(p.In).who
	p.Out.Header.Set(headerCredential, string(who.credential))
	p.Out.Header.Set(headerSubject, string(who.subject))
}

// failed answers for a service that does not. The terminal learns the class of
// the failure, the log the rest. [GATE-6]
func (g *Gate) failed(w http.ResponseWriter, r *http.Request, err error) {
	s := sessionOf(r)
	reason := UpstreamDown
	var timeout net.Error
	switch {
	case s.stalled.Load(): // before the next: the HTTP server takes it for a terminal that is gone
		reason = Stalled
	case r.Context().Err() != nil:
		return // the terminal is gone
	case errors.As(err, &timeout) && timeout.Timeout() && !isDial(err):
		reason = UpstreamTimeout
	}
	g.counts.refused(r.Context(), reason, "request failed", s.RemoteAddr(), s.who, err)
	refuse(w, reason, reason == Stalled)
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// body gives the terminal stallTime for each piece of a request's body. The
// deadline stays when it is not read to its end: the HTTP server then reads a
// good part of the rest before it sends the answer, and would wait for ever.
//
// Past its end it is not asked again: the transport probes for surplus bytes,
// perhaps after the HTTP server has closed the body, and would take that error
// for a reason to cut the service's answer off.
type body struct {
	io.ReadCloser
	control *http.ResponseController
	session *session
	ended   bool
}

func newBody(w http.ResponseWriter, r *http.Request) *body {
	b := &body{ReadCloser: r.Body, control: http.NewResponseController(w), session: sessionOf(r)}
	b.control.SetReadDeadline(time.Now().Add(stallTime))
	return b
}

func (b *body) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	if err := b.control.SetReadDeadline(time.Now().Add(stallTime)); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		b.ended = true
		b.control.SetReadDeadline(time.Time{})
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.session.stalled.Store(true)
	}
	return n, err
}

// buffers is where the proxy takes its copy buffers from.
type buffers struct{ pool sync.Pool }

const copyBuffer = 32 << 10

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, copyBuffer)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
