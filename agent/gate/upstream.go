package gate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/transport/control"
)

// upstream is the protected service.
type upstream struct {
	name      string   // as configured
	base      *url.URL // scheme and host of each request
	transport *http.Transport
}

// newUpstream takes http:// on loopback, unix:/path or https://, without a
// path: a terminal could leave it with dots.
func newUpstream(address string, roots *x509.CertPool) (*upstream, error) {
	dialer := &net.Dialer{Timeout: dialTime, KeepAlive: 30 * time.Second}
	u := &upstream{name: address, transport: &http.Transport{
		// No proxy of the environment, and no compression of our own: what
		// passes, passes unchanged.
		DisableCompression:     true,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTime,
		ResponseHeaderTimeout:  answerTime,
		MaxResponseHeaderBytes: maxAnswerHeader,
		MaxIdleConns:           idleUpstream,
		MaxIdleConnsPerHost:    idleUpstream,
		IdleConnTimeout:        idleTime,
	}}
	if path, ok := configs.UnixPath(address); ok {
		u.base = &url.URL{Scheme: "http", Host: "localhost"}
		u.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
		return u, nil
	}
	base, err := url.Parse(address)
	switch {
	case err != nil || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" || base.Path != "" && base.Path != "/":
		return nil, badUpstream(address, "it is none of http://127.0.0.1:PORT, unix:/path, https://HOST")
	case base.Scheme == "https" || base.Scheme == "http" && loopback(base.Hostname()):
		u.base = &url.URL{Scheme: base.Scheme, Host: base.Host}
		return u, nil
	}
	return nil, badUpstream(address, "plain http is for this machine only")
}

func badUpstream(address, why string) error {
	return control.Problemf(control.Config, "correct upstream in the [gate] section", "upstream %q: %s", address, why)
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (u *upstream) close() { u.transport.CloseIdleConnections() }
