package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

func pkcs8(t testing.TB, key any, err error) transport.Sensitive {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func randomBytes(n int) transport.Sensitive {
	b := make(transport.Sensitive, n)
	rand.Read(b)
	return b
}

// plainKinds are good credentials of each kind that has no certificate.
func plainKinds(t testing.TB) []transport.CredentialRecord {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	pair := pkcs8(t, ec, err)
	var list []transport.CredentialRecord
	for _, c := range []struct {
		kind  transport.CredentialKind
		form  transport.SecretForm
		bytes transport.Sensitive
	}{
		{transport.KindSymmetric, transport.SecretHMAC, randomBytes(32)},
		{transport.KindSymmetric, transport.SecretRaw, randomBytes(16)},
		{transport.KindKeyPair, transport.SecretPKCS8, pair},
		{transport.KindLogin, transport.SecretPassword, transport.Sensitive("truck-7\nxÿ pass phrase")},
		{transport.KindEncryption, transport.SecretRaw, randomBytes(64)},
	} {
		in := ImportParams{Kind: c.kind, Form: c.form, Service: "maps", Subject: "truck-7"}
		r, err := in.record(c.bytes, time.Unix(1e9, 0))
		if err != nil {
			t.Fatalf("%s: %v", c.kind, err)
		}
		list = append(list, *r)
	}
	return list
}

func TestKindsOfCredentials(t *testing.T) {
	good := plainKinds(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	edKey := pkcs8(t, ed, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p384Key := pkcs8(t, p384, err)
	t.Setenv("GODEBUG", "rsa1024min=0")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	rsaSmall := pkcs8(t, small, err)
	for _, b := range []transport.Sensitive{edKey, p384Key} {
		r := good[2]
		r.Secret.Bytes = b
		if err := checkRecord(&r); err != nil {
			t.Error(err)
		}
	}
	type change = func(*transport.CredentialRecord)
	secret := func(b []byte) change { return func(r *transport.CredentialRecord) { r.Secret.Bytes = b } }
	for name, c := range map[string]struct {
		of     int
		change change
	}{
		"short HMAC key":      {0, secret(randomBytes(31))},
		"long HMAC key":       {0, secret(randomBytes(65))},
		"zeros":               {0, secret(make([]byte, 32))},
		"no key":              {0, secret(nil)},
		"short raw key":       {1, secret(randomBytes(15))},
		"a password for one":  {0, func(r *transport.CredentialRecord) { r.Secret.Form = transport.SecretPassword }},
		"no PKCS#8":           {2, secret(randomBytes(100))},
		"PKCS#8 and more":     {2, secret(append(slices.Clone(good[2].Secret.Bytes), 0))},
		"small RSA":           {2, secret(rsaSmall)},
		"long PKCS#8":         {2, secret(make([]byte, maxPKCS8+1))},
		"no login":            {3, secret([]byte("\npassword"))},
		"no password":         {3, secret([]byte("login\n"))},
		"no line feed":        {3, secret([]byte("login"))},
		"a second line feed":  {3, secret([]byte("login\npass\nword"))},
		"no UTF-8":            {3, secret([]byte("login\n\xff\xfe"))},
		"a long login":        {3, secret([]byte(strings.Repeat("l", maxLogin+1) + "\np"))},
		"a long password":     {3, secret([]byte("l\n" + strings.Repeat("p", maxPassword+1)))},
		"a key in a chip":     {4, func(r *transport.CredentialRecord) { r.Secret.Form, r.ChipOnly = transport.SecretTPM, true }},
		"chip only, outside":  {2, func(r *transport.CredentialRecord) { r.ChipOnly = true }},
		"in a chip, any":      {2, func(r *transport.CredentialRecord) { r.Secret.Form = transport.SecretTPM }},
		"a chain":             {0, func(r *transport.CredentialRecord) { r.Chain = [][]byte{{1}} }},
		"anchors":             {0, func(r *transport.CredentialRecord) { r.Anchors = [][]byte{{1}} }},
		"a bad endpoint":      {0, func(r *transport.CredentialRecord) { r.Endpoints = []string{"x"} }},
		"a bad service":       {0, func(r *transport.CredentialRecord) { r.Service = "Maps" }},
		"an unknown transfer": {0, func(r *transport.CredentialRecord) { r.Transfer = "lend" }},
		"an unknown state":    {0, func(r *transport.CredentialRecord) { r.State = "odd" }},
		"before 1970":         {0, func(r *transport.CredentialRecord) { r.Expires = -1 }},
	} {
		r := good[c.of]
		c.change(&r)
		err := checkRecord(&r)
		if err == nil || isUnsuited(err) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && len(r.Secret.Bytes) > 8 && strings.Contains(err.Error(), string(r.Secret.Bytes[:8])) {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
	for name, change := range map[string]change{
		"an unknown kind": func(r *transport.CredentialRecord) { r.Kind = "fingerprint" },
		"a server's":      func(r *transport.CredentialRecord) { r.Usage = transport.UsageServer },
	} {
		r := good[0]
		change(&r)
		if err := checkRecord(&r); !isUnsuited(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzRecord: whatever comes, it is judged without a panic, and what passes has
// a form that its kind may have.
func FuzzRecord(f *testing.F) {
	for _, r := range plainKinds(f) {
		b, err := transport.Marshal(&r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r transport.CredentialRecord
		if transport.Unmarshal(data, &r, transport.MaxKeycopyRecord) != nil {
			return
		}
		_ = secretText(&r.Secret)
		_ = publicKeyID(&r.Secret)
		if checkRecord(&r) == nil && r.Secret.Form != transport.SecretDuplicate && !slices.Contains(formsOf(r.Kind), r.Secret.Form) {
			t.Fatalf("%+v", r)
		}
	})
}

// bring imports a credential of each kind into the old terminal.
func (r *copyRig) bring(transfer transport.Transfer) []transport.CredentialRecord {
	r.t.Helper()
	list := plainKinds(r.t)
	for i := range list {
		list[i].Transfer = transfer
		if _, err := r.old.vault.importRecord(&list[i], ""); err != nil {
			r.t.Fatal(err)
		}
	}
	return list
}

// Every kind goes whole, and a copy leaves it at both ends. req: C8, C9, L2
func TestEveryKindIsCopied(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	list := r.bring(transport.TransferCopy)
	o, code := r.arm()
	last, _, err := r.fetch(o, code)
	if err != nil {
		t.Fatal(err)
	}
	<-o.done
	if len(last.Keys) != len(list)+1 || len(last.Held) != 0 {
		t.Errorf("%+v", last)
	}
	for i := range list {
		r.sameAt(&list[i], r.old, OriginImport)
		r.sameAt(&list[i], r.new, OriginCopy)
	}
	// Nobody can prove to the server that he has them: the report has to do.
	claims := 0
	_ = r.new.vault.store.View(func(tx *store.Tx) error {
		return tx.Each(bucketClaims, func(string, func(any) error) error { claims++; return nil })
	})
	if claims != 1 {
		t.Errorf("%d claims", claims)
	}
	// Once more: it is the same, and there.
	o, code = r.arm()
	if _, _, err := r.fetch(o, code); err != nil {
		t.Fatal(err)
	}
	<-o.done
}

func (r *copyRig) sameAt(want *transport.CredentialRecord, a *Agent, origin Origin) {
	r.t.Helper()
	h := r.held(a, want.ID)
	if h == nil || h.Origin != origin || h.Record.Kind != want.Kind || h.Record.Secret.Form != want.Secret.Form || !bytes.Equal(h.Record.Secret.Bytes, want.Secret.Bytes) {
		r.t.Errorf("%s: %+v", want.Kind, h)
		return
	}
	if why := h.unusable(a.vault.clock); why != "" {
		r.t.Errorf("%s: %s", want.Kind, why)
	}
}

// A move leaves each kind at the new terminal alone.
func TestEveryKindIsMoved(t *testing.T) {
	r := newCopyRig(t)
	list := r.bring(transport.TransferMove)
	o, code := r.arm()
	if _, _, err := r.fetch(o, code); err != nil {
		t.Fatal(err)
	}
	<-o.done
	for i := range list {
		r.sameAt(&list[i], r.new, OriginMove)
		if h := r.held(r.old, list[i].ID); h != nil {
			t.Errorf("%s: the old terminal still has it: %+v", list[i].Kind, h)
		}
	}
}

// A key in a chip moves to the other chip, and its blob goes at the old one.
func TestChipKeyIsMoved(t *testing.T) {
	r := newChipRig(t)
	r.approve(r.new, r.fleet)
	public := r.inChip("maps-1", transport.TransferMove)
	last, _ := r.run()
	if len(last.Keys) != 1 || r.held(r.old, "maps-1") != nil {
		t.Errorf("%+v", last)
	}
	reaches(t, r.new, r.ca, public)
	if _, err := r.old.Credential("maps", transport.UsageClient); !errors.Is(err, ErrNoCredential) {
		t.Errorf("the old terminal still uses it: %v", err)
	}
}

// A kind that the new terminal does not know is refused by name; it stays at the
// old one, and the rest goes.
func TestUnknownKindIsSaidSo(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	list := r.bring(transport.TransferMove)
	odd := list[0]
	odd.Kind = "fingerprint"
	if err := r.old.vault.update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: odd, Origin: OriginImport}) }); err != nil {
		t.Fatal(err)
	}
	o, code := r.arm()
	_, steps, err := r.fetch(o, code)
	if err != nil {
		t.Fatal(err)
	}
	<-o.done
	if got := whyOf(steps, odd.ID); !strings.Contains(got, "fingerprint") || !strings.Contains(got, "update this terminal") {
		t.Errorf("%q", got)
	}
	if r.held(r.old, odd.ID) == nil || r.held(r.new, odd.ID) != nil || r.held(r.new, "maps-1") == nil || r.held(r.old, list[1].ID) != nil {
		t.Error("the wrong ones went")
	}
}

// whyOf is why the new terminal did not take something, as it said on the way.
func whyOf(steps []KeycopyEvent, id transport.Name) string {
	for i := range steps {
		if text := why(&steps[i], id); text != "" {
			return text
		}
	}
	return ""
}

// Two secrets under one id: neither is overwritten.
func TestOtherSecretUnderOneID(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	list := r.bring(transport.TransferCopy)
	other := list[0]
	other.Secret.Bytes = randomBytes(32)
	if err := r.new.vault.update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: other, Origin: OriginImport}) }); err != nil {
		t.Fatal(err)
	}
	o, code := r.arm()
	_, steps, err := r.fetch(o, code)
	if err != nil {
		t.Fatal(err)
	}
	<-o.done
	if got := whyOf(steps, other.ID); !strings.Contains(got, "another secret") {
		t.Errorf("%q", got)
	}
	r.sameAt(&other, r.new, OriginImport)
	r.sameAt(&list[0], r.old, OriginImport)
}

// What import takes and refuses, and that remove destroys.
func TestImport(t *testing.T) {
	v := testVault(t, t.TempDir())
	now := v.clock.Earliest()
	secret := randomBytes(32)
	in := ImportParams{Kind: transport.KindSymmetric, Service: "maps", Subject: "truck-7", Expires: now.Add(time.Hour)}
	r, err := in.record(secret, now)
	if err != nil {
		t.Fatal(err)
	}
	info, err := v.importRecord(r, "")
	if err != nil || !info.Usable || info.Transfer != transport.TransferCopy || info.Secret != "HMAC key of 32 bytes" || info.Reported || info.Remaining == 0 {
		t.Errorf("%+v, %v", info, err)
	}
	if s, err := v.summary(); err != nil || s.Total != 1 || s.Usable != 1 || s.Unreported != 0 || s.NextID != string(info.ID) {
		t.Errorf("%+v, %v", s, err)
	}
	for name, change := range map[string]func(*ImportParams){
		"a certificate": func(p *ImportParams) { p.Kind = transport.KindCertificate }, "an unknown kind": func(p *ImportParams) { p.Kind = "x" },
		"into the chip": func(p *ImportParams) { p.Kind, p.Form = transport.KindKeyPair, transport.SecretTPM },
		"another form":  func(p *ImportParams) { p.Form = transport.SecretPassword }, "no service": func(p *ImportParams) { p.Service = "" },
		"no subject": func(p *ImportParams) { p.Subject = "X" }, "a transfer": func(p *ImportParams) { p.Transfer = "lend" },
		"expired": func(p *ImportParams) { p.Expires = now.Add(-time.Second) },
	} {
		p := in
		change(&p)
		if _, err := p.record(secret, now); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	next, err := in.record(randomBytes(32), now)
	if err != nil {
		t.Fatal(err)
	}
	if replaced, err := v.importRecord(next, string(info.ID)); err != nil || replaced.ID != info.ID {
		t.Errorf("%+v, %v", replaced, err)
	}
	next.Subject = "truck-8"
	var p *control.Problem
	if _, err := v.importRecord(next, string(info.ID)); !errors.As(err, &p) || p.Kind != control.Conflict {
		t.Errorf("in place of another subject's: %v", err)
	}
	if err := v.remove("im-nothere"); !errors.As(err, &p) || p.Kind != control.NotFound {
		t.Error(err)
	}
	cert := newAuthority(t).record("maps-1")
	if err := v.update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: cert, Origin: OriginIssue}) }); err != nil {
		t.Fatal(err)
	}
	if err := v.remove("maps-1"); !errors.As(err, &p) || p.Kind != control.Refused {
		t.Error(err)
	}
	if err := v.remove(string(info.ID)); err != nil {
		t.Error(err)
	}
	c := &conversation{t: t, vault: v}
	if len(c.entries(audit.Imported)) != 2 || len(c.entries(audit.Erased)) != 1 {
		t.Error("not in the audit log")
	}
}

// A secret of each kind is sealed at rest.
func TestKindsAreSealed(t *testing.T) {
	dir := t.TempDir()
	r := &copyRig{t: t, old: &Agent{vault: testVault(t, dir)}}
	list := r.bring(transport.TransferNever)
	data, err := os.ReadFile(filepath.Join(dir, storeFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if bytes.Contains(data, c.Secret.Bytes[:8]) {
			t.Errorf("a %s lies in the store in clear", c.Kind)
		}
	}
}

// A relay is only promised to what a relay uses.
func TestWhatComesAfterACopy(t *testing.T) {
	a := &Agent{cfg: Config{Program: "kagimori"}}
	d := new(keycopy.Transaction)
	d.Items = []transport.KeycopyEntry{{ID: "a", Kind: transport.KindLogin, Service: "portal"}, {ID: "b", Kind: transport.KindCertificate, Service: "maps"}}
	for status, want := range map[byte]string{1: "credential list", 2: "[[relay]] for maps", 3: "[[relay]] for maps"} {
		if d.Status = []byte{status}; !strings.Contains(a.relayed(d), want) {
			t.Errorf("taken %02b: %q, want %q", status, a.relayed(d), want)
		}
	}
}
