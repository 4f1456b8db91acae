package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Over TLS, each mode carries the keys between two terminals with identities.
// req: C3, C4, C6
func TestModesBetweenTerminals(t *testing.T) {
	for _, mode := range transport.KeycopyModes() {
		r := newCopyRig(t, "maps-1")
		r.new = r.terminal("nav-002")
		r.configure(func(c *KeycopyConfig) { c.Modes, c.RequireIdentity = []transport.KeycopyMode{mode}, true }, r.old, r.new)
		o, code := r.arm()
		last, _, err := r.fetch(o, code)
		if err != nil || len(last.Keys) != 1 || last.Peer != "nav-001" {
			t.Fatalf("%s: %v, %+v", mode, err, last)
		}
		<-o.done
		given, err := o.result()
		if err != nil || given.Peer != "nav-002" || !slices.Equal(ids(t, r.new), []transport.Name{"maps-1"}) {
			t.Errorf("%s: %v, %+v", mode, err, given)
		}
	}
}

// A mode is agreed on by both ends' configuration or not at all; refusals say
// what to change, cost no attempt, and leave the offer as it is. req: C3
func TestModeRefusals(t *testing.T) {
	direct, pake := []transport.KeycopyMode{transport.KeycopyDirect}, []transport.KeycopyMode{transport.KeycopyPAKE}
	for name, tt := range map[string]struct {
		old, new KeycopyConfig
		spare    bool
		ask      transport.KeycopyMode
		want     string
		turned   string
		kind     control.Kind
	}{
		"not a mode":             {ask: "fast", want: "is no mode", kind: control.BadInput},
		"not enabled here":       {ask: transport.KeycopyKEK, want: "mode kek is not enabled on this terminal; enabled: pake", kind: control.Conflict},
		"not enabled there":      {new: KeycopyConfig{Modes: direct}, want: "not allowed", turned: `asked for mode "direct", which is not enabled here`, kind: control.Refused},
		"only another there":     {old: KeycopyConfig{Modes: direct}, want: "not allowed", turned: `asked for mode "pake"`, kind: control.Refused},
		"direct, from a spare":   {old: KeycopyConfig{Modes: direct}, new: KeycopyConfig{Modes: direct}, spare: true, want: "needs an identity certificate", kind: control.Conflict},
		"required, from a spare": {new: KeycopyConfig{Modes: pake, RequireIdentity: true}, spare: true, want: "needs an identity certificate", kind: control.Conflict},
		"required there, spare":  {old: KeycopyConfig{RequireIdentity: true}, spare: true, want: "not allowed", turned: "needs an identity certificate of the other terminal", kind: control.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			r := newCopyRig(t, "maps-1")
			if !tt.spare {
				r.new = r.terminal("nav-002")
			}
			tt.old.Listen, tt.new.Listen = "127.0.0.1:0", "127.0.0.1:0"
			r.configure(func(c *KeycopyConfig) { *c = tt.old }, r.old)
			r.configure(func(c *KeycopyConfig) { *c = tt.new }, r.new)
			o, code := r.arm()
			_, err := r.new.fetch(t.Context(), fetchOrder{address: o.chosen.Listen, typed: slices.Clone(code), mode: tt.ask}, func(KeycopyEvent) {})
			if !errors.Is(err, &control.Problem{Kind: tt.kind}) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s: ... %q", err, tt.kind, tt.want)
			}
			if tt.turned != "" {
				select {
				case ev := <-o.events:
					for ev.Step != "turned" {
						ev = <-o.events
					}
					if !strings.Contains(ev.Text, tt.turned) {
						t.Errorf("the old terminal says %q", ev.Text)
					}
				case <-time.After(10 * time.Second):
					t.Error("the old terminal says nothing")
				}
			}
			if len(ids(t, r.new)) != 0 {
				t.Error("something was copied")
			}
			if state, _ := o.source.State(); state != keycopy.Armed {
				t.Errorf("the offer is %s", state)
			}
			r.old.disarm()
		})
	}
	// An offer that nobody could take is not made.
	r := newCopyRig(t, "maps-1")
	spare := r.terminal("")
	r.configure(func(c *KeycopyConfig) { c.Modes = direct }, spare)
	if err := spare.cfg.Keycopy.offerable(mustParty(t, spare).identity() != nil); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("an offer without identity: %v", err)
	}
	r.configure(func(c *KeycopyConfig) { c.Modes = append(pake, direct...) }, spare)
	if err := spare.cfg.Keycopy.offerable(false); err != nil {
		t.Error(err)
	}
}
