package agent

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// socket serves an agent's interface on a real control socket.
func socket(t testing.TB, a *Agent) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "k")
	if err != nil {
		t.Fatal(err)
	}
	access, err := control.NewAccess(nil)
	if err != nil {
		t.Fatal(err)
	}
	server, err := control.New(control.Options{Product: "kagimori", Access: access}, testLog(t), a.Interface())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	ln, err := control.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(ctx, ln) })
	t.Cleanup(func() { stop(); wg.Wait(); os.RemoveAll(dir) })
	return path
}

func dial(t testing.TB, path string) *control.Client {
	t.Helper()
	c, err := control.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Who may do what (DESIGN D13).
func TestClasses(t *testing.T) {
	want := map[string]control.Class{
		"Status": control.Read, "CredentialList": control.Read, "CredentialShow": control.Read, "RelayList": control.Read,
		"KeycopyOffer": control.Operate, "KeycopyDisarm": control.Operate, "KeycopyFetch": control.Operate, "KeycopyUnlock": control.Admin, "Provision": control.Admin,
		"KeycopyFind": control.Operate, "KeycopyList": control.Read, "KeycopyShow": control.Read, "KeycopyResume": control.Operate, "KeycopyAbandon": control.Operate,
		"KeycopyReclaim": control.Admin, "KeycopyActivate": control.Admin, "KeycopyDrop": control.Admin,
		"AuditList": control.Read, "AuditVerify": control.Read, "Doctor": control.Read, "KeyStorage": control.Read,
		"LockoutSet": control.Admin, "LockoutReset": control.Admin, "PINSet": control.Admin, "PINClear": control.Admin,
		"RecoveryStatus": control.Read, "RecoveryStart": control.Admin, "RecoveryAcceptOlder": control.Admin, "RecoveryExport": control.Admin, "RecoveryImport": control.Admin,
		"Unlock": control.Operate, "PassphraseSet": control.Admin, "PassphraseRemove": control.Admin,
		"BootShow": control.Read, "BootPrepare": control.Admin, "BootConfirm": control.Admin,
		"CredentialImport": control.Admin, "CredentialRemove": control.Admin, "ChipShow": control.Read, "ChipInstall": control.Admin,
	}
	got := map[string]control.Class{}
	for _, m := range testAgent(t, Config{}).Interface().Methods {
		got[m.Name] = m.Class
		if m.Doc == "" {
			t.Errorf("%s is not explained", m.Name)
		}
	}
	for name, class := range want {
		if c, ok := got[name]; !ok || c != class {
			t.Errorf("%s is for %v, want %v", name, c, class)
		}
	}
	if len(got) != len(want) {
		t.Errorf("methods %v", got)
	}
}

// req: C2, C5, C9: the whole copy as two verbs see it.
func TestCopyOverTheControlSocket(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	from, to := dial(t, socket(t, r.old)), dial(t, socket(t, r.new))
	reader, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	armed := make(chan KeycopyEvent, 1)
	var steps []string
	var wg sync.WaitGroup
	var offered error
	wg.Go(func() {
		offered = from.Stream(t.Context(), "com.kagimori.agent.KeycopyOffer", OfferParams{ReplyKey: reader.Key()}, func(raw json.RawMessage) error {
			var ev KeycopyEvent
			err := json.Unmarshal(raw, &ev)
			steps = append(steps, ev.Step)
			if ev.Step == "armed" {
				armed <- ev
			}
			return err
		})
		close(armed)
	})
	ev := <-armed
	code, err := reader.Open(LabelCode, ev.Code)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := to.Seal(t.Context(), LabelCode, code)
	if err != nil {
		t.Fatal(err)
	}
	var last KeycopyEvent
	err = to.Stream(t.Context(), "com.kagimori.agent.KeycopyFetch", FetchParams{Address: ev.Listen, Code: sealed}, func(raw json.RawMessage) error {
		last = KeycopyEvent{}
		return json.Unmarshal(raw, &last)
	})
	wg.Wait()
	if err != nil || offered != nil {
		t.Fatalf("fetch: %v, offer: %v", err, offered)
	}
	if last.Step != "closed" || len(last.Keys) != 1 || last.Next == "" {
		t.Errorf("fetch ends with %+v", last)
	}
	if want := []string{"armed", "connected", "granted", "item", "installed", "closed"}; !slices.Equal(steps, want) {
		t.Errorf("offer told %v, want %v", steps, want)
	}
}

// A lost login does not take the offer away; disarming does.
func TestOfferOutlivesItsCaller(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	path := socket(t, r.old)
	reader, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("the login is gone")
	err = dial(t, path).Stream(t.Context(), "com.kagimori.agent.KeycopyOffer", OfferParams{ReplyKey: reader.Key()}, func(json.RawMessage) error { return gone })
	if !errors.Is(err, gone) {
		t.Fatal(err)
	}
	if s := r.old.Status().Keycopy; s.Offer != "armed" {
		t.Errorf("offer is %s", s.Offer)
	}
	var out DisarmReply
	if err := dial(t, path).Call(t.Context(), "com.kagimori.agent.KeycopyDisarm", nil, &out); err != nil || !out.Disarmed {
		t.Errorf("%+v, %v", out, err)
	}
	if s := r.old.Status().Keycopy; s.Offer != "none" {
		t.Errorf("offer is %s", s.Offer)
	}
	// A key to which nothing can be sealed: nobody would see the code.
	err = dial(t, path).Stream(t.Context(), "com.kagimori.agent.KeycopyOffer", OfferParams{ReplyKey: "x"}, func(json.RawMessage) error { return nil })
	if !errors.Is(err, &control.Problem{Kind: control.BadInput}) {
		t.Errorf("%v", err)
	}
	eventually(t, "nothing is armed", func() bool { return r.old.Status().Keycopy.Offer == "none" })
}

// A list longer than one message comes in pieces, in order, without secrets.
func TestLongCredentialList(t *testing.T) {
	r := newCopyRig(t)
	record := r.ca.record("maps")
	const n = 2*pageSize + 7
	err := r.old.vault.update(func(tx *store.Tx) error {
		for i := range n {
			c := record
			c.ID = transport.Name("maps-" + string(rune('a'+i/100)) + string(rune('a'+i/10%10)) + string(rune('a'+i%10)))
			if err := hold(tx, &holdingRecord{Record: c, Origin: OriginIssue}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []transport.Name
	pages := 0
	err = dial(t, socket(t, r.old)).Stream(t.Context(), "com.kagimori.agent.CredentialList", nil, func(raw json.RawMessage) error {
		var page CredentialPage
		err := json.Unmarshal(raw, &page)
		for _, c := range page.Credentials {
			got = append(got, c.ID)
		}
		pages++
		return err
	})
	if err != nil || len(got) != n || pages != 3 || !slices.IsSorted(got) {
		t.Errorf("%d credentials in %d pages, %v", len(got), pages, err)
	}
}
