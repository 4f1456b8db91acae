package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// takes sets who makes codes, on both terminals.
func (r *copyRig) takes(p keycopy.CodePolicy) *copyRig {
	r.configure(func(c *KeycopyConfig) { c.Codes = p }, r.old, r.new)
	return r
}

// typed arms the old terminal with an operator's own code.
func (r *copyRig) typed(code string) (*offering, error) {
	o, shown, err := r.old.arm(r.t.Context(), armOrder{typed: transport.Sensitive(code)})
	if shown != nil {
		r.t.Error("a code that the operator made is shown to him")
	}
	return o, err
}

func used(t testing.TB, v *vault) (u keycopy.UsedCodes) {
	t.Helper()
	if err := v.store.View(func(tx *store.Tx) error { _, err := tx.Get(bucketAttempts, keyUsedCodes, &u); return err }); err != nil {
		t.Fatal(err)
	}
	return u
}

// The patent's flow: the operator types a code of his own on both terminals.
//
// req: C2, C5
func TestCodeTypedOnBothTerminals(t *testing.T) {
	for _, policy := range []keycopy.CodePolicy{keycopy.CodesTyped, keycopy.CodesEither} {
		r := newCopyRig(t, "maps-1").takes(policy)
		o, err := r.typed("8317 4092")
		if err != nil {
			t.Fatal(err)
		}
		if o.chosen.CodeKind != keycopy.CodeTyped {
			t.Errorf("armed with %+v", o.chosen)
		}
		if _, _, err := r.fetch(o, []byte("83174093")); !errors.Is(err, transport.KeycopyAuthFailed) {
			t.Fatalf("another code: %v", err)
		}
		last, _, err := r.fetch(o, []byte("８３１７４０９２"))
		if err != nil || len(last.Keys) != 1 {
			t.Fatal(err)
		}
		<-o.done
		// Neither terminal takes it a second time, in whatever role.
		for _, a := range []*Agent{r.old, r.new} {
			if _, _, err := a.arm(t.Context(), armOrder{typed: transport.Sensitive("83174092")}); !errors.Is(err, keycopy.ErrUsedCode) || !errors.Is(err, &control.Problem{Kind: control.BadInput}) {
				t.Errorf("as a Source again: %v", err)
			}
			if _, err := a.fetch(t.Context(), fetchOrder{address: "127.0.0.1:1", typed: transport.Sensitive("83174092")}, nil); !errors.Is(err, keycopy.ErrUsedCode) {
				t.Errorf("as a Target again: %v", err)
			}
		}
		if n := used(t, r.new.vault); len(n.Codes) != 2 || n.Codes[0].Spent || !n.Codes[1].Spent {
			t.Errorf("the new terminal remembers %+v", n)
		}
	}
}

// What a policy does not allow is refused, says how it is done, and costs nothing.
func TestCodePolicies(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	if _, err := r.typed("83174092"); !errors.Is(err, &control.Problem{Kind: control.Conflict}) || !strings.Contains(control.AsProblem(err).Next, "either") {
		t.Errorf("a typed code where codes are generated: %v", err)
	}
	r.takes(keycopy.CodesTyped)
	if _, _, err := r.old.arm(t.Context(), armOrder{}); !errors.Is(err, &control.Problem{Kind: control.Conflict}) || !strings.Contains(control.AsProblem(err).Next, "--typed") {
		t.Errorf("a generated code where codes are typed: %v", err)
	}
	r.configure(func(c *KeycopyConfig) { c.Numbers = []string{"SN-173"} }, r.old)
	r.configure(func(c *KeycopyConfig) { c.Numbers = []string{"SN-173", "box 001"} }, r.new)
	for code, words := range map[string]string{"12345678": "easy to guess", "83174": "5 digits typed", "000000000": "9 digits", "40017392": "serial number", "8300196": "7 digits", "83001964": "name"} {
		if _, err := r.typed(code); !errors.Is(err, &control.Problem{Kind: control.BadInput}) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", code, err, words)
		}
		if _, err := r.new.fetch(t.Context(), fetchOrder{address: "127.0.0.1:1", typed: transport.Sensitive(code)}, nil); !errors.Is(err, &control.Problem{Kind: control.BadInput}) {
			t.Errorf("%s on the new terminal: %v", code, err)
		}
	}
	for _, a := range []*Agent{r.old, r.new} {
		if n := used(t, a.vault); len(n.Codes) != 0 {
			t.Errorf("what was refused is remembered: %+v", n)
		}
	}
}

// A typed code that does not match counts like any other, and after its attempts
// the code is spent.
//
// req: C3
func TestTypedCodesAreCounted(t *testing.T) {
	r := newCopyRig(t, "maps-1").takes(keycopy.CodesEither)
	o, err := r.typed("83174092")
	if err != nil {
		t.Fatal(err)
	}
	for n := range keycopy.CodeAttempts {
		if _, _, err := r.fetch(o, []byte("60281947")); !errors.Is(err, transport.KeycopyAuthFailed) {
			t.Fatalf("try %d: %v", n, err)
		}
	}
	<-o.done
	if o.outcome.Reason != keycopy.EndKilled {
		t.Errorf("ended by %s", o.outcome.Reason)
	}
	if _, _, err := r.fetch(o, []byte("60281947")); !errors.Is(err, keycopy.ErrLocked) {
		t.Errorf("a fourth try: %v", err)
	}
	if n := used(t, r.new.vault); len(n.Codes) != 1 || n.Codes[0].Spent {
		t.Errorf("%+v", n)
	}
}

// The tags' key is made once. With the chip that had it they are worth nothing.
func TestKeyOfCodeTags(t *testing.T) {
	r := newCopyRig(t, "maps-1").takes(keycopy.CodesTyped)
	v := r.old.vault
	code := func(digits string) *keycopy.OperatorCode {
		c, err := keycopy.CodesTyped.Parse([]byte(digits), keycopy.Instant{Wall: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	tag := func(digits string) uint16 {
		n, err := v.codeTag(t.Context(), code(digits))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := tag("83174092")
	if tag("83174092") != first || tag("60281947") == first {
		t.Error("tags do not tell codes apart")
	}
	n := first
	if err := v.update(func(tx *store.Tx) error { return v.useCode(tx, &n, true) }); err != nil {
		t.Fatal(err)
	}
	var blob hsm.Blob
	err := v.update(func(tx *store.Tx) error {
		blob = slices.Clone(tx.Blob(blobCodeTags))
		return tx.DeleteBlob(blobCodeTags)
	})
	if err != nil || len(blob) == 0 {
		t.Fatal(blob, err)
	}
	if tag("83174092") == first {
		t.Error("a new key gives the same tag")
	}
	if u := used(t, v); len(u.Codes) != 0 {
		t.Errorf("tags under a lost key are kept: %+v", u)
	}
}
