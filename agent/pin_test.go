package agent

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// offerWith asks for an offer with a PIN, "" for none, and hangs up at once.
func offerWith(t *testing.T, c *control.Client, pin string) error {
	t.Helper()
	reader, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	in := OfferParams{ReplyKey: reader.Key()}
	if pin != "" {
		if in.PIN, err = c.Seal(t.Context(), LabelPIN, transport.Sensitive(pin)); err != nil {
			t.Fatal(err)
		}
	}
	seen := errors.New("armed")
	err = c.Stream(t.Context(), "com.kagimori.agent.KeycopyOffer", in, func(json.RawMessage) error { return seen })
	if errors.Is(err, seen) {
		return nil
	}
	return err
}

// Once a PIN is set, nobody offers keys without it: not without, not with a
// wrong one, and neither arms anything.
func TestOfferAsksForThePIN(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	path := socket(t, r.old)
	set := func(pin string) error {
		c := dial(t, path)
		sealed, err := c.Seal(t.Context(), LabelPIN, transport.Sensitive(pin))
		if err != nil {
			t.Fatal(err)
		}
		return c.Call(t.Context(), "com.kagimori.agent.PINSet", PINParams{PIN: sealed}, nil)
	}
	for _, bad := range []string{"", "123", strings.Repeat("1", 33)} {
		if err := set(bad); !errors.Is(err, &control.Problem{Kind: control.BadInput}) {
			t.Errorf("PIN of %d characters: %v", len(bad), err)
		}
	}
	if r.old.Status().Keycopy.PIN {
		t.Error("a refused PIN is set")
	}
	if err := set("2468"); err != nil {
		t.Fatal(err)
	}
	if !r.old.Status().Keycopy.PIN {
		t.Error("status does not tell that a PIN is set")
	}
	for pin, kind := range map[string]control.Kind{"": control.Refused, "1357": control.Refused, "24": control.BadInput} {
		err := offerWith(t, dial(t, path), pin)
		if !errors.Is(err, &control.Problem{Kind: kind}) || control.AsProblem(err).Next == "" {
			t.Errorf("offer with PIN %q: %v", pin, err)
		}
		if r.old.Status().Keycopy.Offer != "none" {
			t.Fatalf("PIN %q armed an offer", pin)
		}
	}
	if err := offerWith(t, dial(t, path), "2468"); err != nil || r.old.Status().Keycopy.Offer != "armed" {
		t.Errorf("the right PIN: %v, %s", err, r.old.Status().Keycopy.Offer)
	}
	r.old.disarm()
	if err := errors.Join(r.old.pinClear(), offerWith(t, dial(t, path), "")); err != nil {
		t.Errorf("after it was taken away: %v", err)
	}
	if err := r.old.pinClear(); !errors.Is(err, &control.Problem{Kind: control.NotFound}) {
		t.Errorf("taken away twice: %v", err)
	}
	got := kinds(logOf(t, r.old))
	if want := []audit.Kind{audit.PINSet, audit.PINWrong, audit.CopyOffered, audit.PINCleared, audit.CopyOffered}; !slices.Equal(got[len(got)-len(want):], want) {
		t.Errorf("log: %v", got)
	}
	r.old.disarm()
}

// The lockout verbs are a TPM's; with a file they say so, and ask nobody.
func TestLockoutWithoutChip(t *testing.T) {
	a := testAgent(t, Config{})
	c := dial(t, socket(t, a))
	err := c.Call(t.Context(), "com.kagimori.agent.LockoutReset", LockoutParams{}, nil)
	if !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Error(err)
	}
	for _, in := range []LockoutParams{{}, {Limit: 1, Recovery: 1}, {Limit: -1, Recovery: 1, Reset: 1}, {Limit: 1 << 20, Recovery: 1, Reset: 1}} {
		err := c.Call(t.Context(), "com.kagimori.agent.LockoutSet", in, nil)
		if !errors.Is(err, &control.Problem{Kind: control.BadInput}) {
			t.Errorf("%+v: %v", in, err)
		}
	}
}
