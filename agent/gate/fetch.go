package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Where lists come from: the management server pushes them over the link, and
// the gate fetches them from the address that it was told.

// Receive takes a message that the agent itself does not know.
func (g *Gate) Receive(_ context.Context, e *transport.Envelope) error {
	m, err := transport.Open[transport.ServiceRevoked](e)
	if err != nil {
		return err
	}
	place, err := g.source.Place()
	if err != nil {
		return err
	}
	fetch, err := g.crls.pushed(m, place.Roots, g.now())
	g.sweep()
	if fetch {
		g.fetcher.wake()
	}
	g.crls.flush(g.now())
	return err
}

// fetchAll fetches at the start and every CRLFetch, at once when a list was
// announced, and sooner again after a failure.
func (g *Gate) fetchAll(ctx context.Context) {
	var pause, retry time.Duration
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-g.fetcher.now:
			timer.Stop()
			retry = 0
		}
		pause, retry = g.cfg.CRLFetch, min(max(2*retry, fetchRetry), g.cfg.CRLFetch)
		if g.fetchOnce(ctx) {
			retry = 0
		} else {
			pause = retry + rand.N(retry/4) // gates must not fetch in step
		}
	}
}

// fetchOnce fetches each list once. It returns false when it should soon be
// tried again.
func (g *Gate) fetchOnce(ctx context.Context) bool {
	place, err := g.source.Place()
	if err != nil {
		return true // nothing to fetch before it is provisioned
	}
	targets, _ := g.crls.targets()
	ok := true
	for _, t := range targets {
		data, err := g.fetcher.get(ctx, t.url, &tls.Config{RootCAs: place.Roots, Time: g.source.Time, MinVersion: tls.VersionTLS12})
		if err != nil {
			g.crls.failed(t.id, err)
		} else {
			err = g.crls.fetched(t.id, data, g.now())
		}
		if err != nil && ctx.Err() == nil {
			ok = false
			g.log.Warn("revocation list not fetched", "url", t.url, "err", err)
		}
	}
	g.sweep()
	g.crls.flush(g.now())
	_, behind := g.crls.targets()
	return ok && !behind
}

// A fetcher gets one document over HTTP.
type fetcher struct {
	now chan struct{} // a tick: fetch at once
}

func newFetcher() *fetcher { return &fetcher{now: make(chan struct{}, 1)} }

func (f *fetcher) wake() {
	select {
	case f.now <- struct{}{}:
	default:
	}
}

// get takes the answer to one GET: no redirect, no proxy of the environment,
// transport.MaxCRL bytes, fetchTime. config is for https.
func (f *fetcher) get(ctx context.Context, address string, config *tls.Config) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	t := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		TLSClientConfig: config,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch revocation list: %w", err)
	}
	resp, err := t.RoundTrip(req) // not a Client: it would follow redirects
	if err != nil {
		return nil, fmt.Errorf("fetch revocation list: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch revocation list: the server answers %q", resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, transport.MaxCRL+1))
	if err != nil {
		return nil, fmt.Errorf("fetch revocation list: %w", err)
	}
	if len(data) > transport.MaxCRL {
		return nil, errors.New("fetch revocation list: it is longer than this program takes")
	}
	return data, nil
}
