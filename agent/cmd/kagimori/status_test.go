package main

import (
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
)

// What status says when something has run out or is shut, and what to do.
func TestStatusAsSeen(t *testing.T) {
	at := time.Date(2026, 11, 22, 17, 35, 0, 0, time.UTC)
	good := agent.Status{
		Keys: agent.KeysStatus{Open: true, Level: "file"}, Kind: transport.BundleTerminal, Terminal: "nav-001", Deployment: "acme", Group: "default",
		Link: agent.LinkStatus{State: agent.LinkConnected, Server: "s:8883", Since: at}, Keycopy: &agent.KeycopyStatus{Offer: "none"},
	}
	for name, c := range map[string]struct {
		change func(*agent.Status)
		want   []string
	}{
		"an expired credential": {func(s *agent.Status) {
			s.Credentials = agent.CredentialSummary{
				Total: 1, Expired: []agent.ExpiredCredential{{ID: "cr-b4w9tn6rjd", Service: "maps", Since: at}},
				Next: "have it issued anew: kagimori-server credential issue nav-001 --service maps",
			}
		}, []string{"1, 0 usable; cr-b4w9tn6rjd (maps) expired 2026-11-22 17:35 UTC", "next: have it issued anew: kagimori-server credential issue nav-001 --service maps"}},
		"locked for codes":  {func(s *agent.Status) { s.Keycopy.LockedFetch = 296 }, []string{"takes no operator code for 4m56s"}},
		"locked for offers": {func(s *agent.Status) { s.Keycopy.Locked = 3600 }, []string{"locked for 1h0m0s after wrong operator codes"}},
		"an offer": {func(s *agent.Status) { *s.Keycopy = agent.KeycopyStatus{Offer: "armed", Listen: "a:1", Seconds: 60} },
			[]string{"an offer stands at a:1, its code is good for 1m0s"}},
		"keys that are shut": {func(s *agent.Status) {
			*s = agent.Status{Keys: agent.KeysStatus{Text: "absent", Next: "put the right one back"}}
		},
			[]string{"credentials  not known while", "terminal     not known while", "next: put the right one back"}},
		"a relay that was refused": {func(s *agent.Status) {
			s.Relays = []agent.RelayStatus{{Service: "maps", Listen: "l:1", Listening: true, Credential: "cr-1", Error: "the gate refused it", ErrorTime: at}}
		}, []string{"with cr-1, 0 open; last refusal 2026-11-22 17:35 UTC: the gate refused it"}},
	} {
		s, copies := good, *good.Keycopy
		s.Keycopy = &copies
		c.change(&s)
		var b strings.Builder
		showStatus(&b, &s)
		for _, want := range c.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: no %q in\n%s", name, want, &b)
			}
		}
	}
}

func TestRelaysAsSeen(t *testing.T) {
	var b strings.Builder
	showRelays(&b, []agent.RelayStatus{
		{Service: "maps", Listen: "l:1", Listening: true, Error: "no usable credential"},
		{Service: "tiles", Listen: "l:2", Listening: true, Credential: "cr-1", Error: "why", ErrorTime: time.Date(2026, 11, 22, 17, 35, 0, 0, time.UTC)},
	})
	for _, want := range []string{"l:1     -           0", "last refusal 2026-11-22 17:35 UTC: why"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}
