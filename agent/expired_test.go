package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// A credential that has expired is named, with the way to another one; once the
// other one is here, it is no news any more.
func TestStatusNamesExpiredCredentials(t *testing.T) {
	ca := newAuthority(t)
	a := testAgent(t, Config{})
	mustProvision(t, a, ca.bundle(transport.BundleTerminal, "nav-001"))
	give := func(id transport.Name, expires time.Time) {
		t.Helper()
		r := ca.record(id)
		r.Expires = expires.Unix()
		if err := a.Update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: r, Origin: OriginIssue}) }); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	a.clock.Raise(now)
	ended := now.Add(-time.Minute)
	give("cr-old", ended)
	s := a.Status().Credentials
	if len(s.Expired) != 1 || s.Expired[0].ID != "cr-old" || s.Expired[0].Since.Unix() != ended.Unix() || s.Usable != 0 {
		t.Errorf("%+v", s)
	}
	if s.Next != "have it issued anew: kagimori-server credential issue nav-001 --service maps" {
		t.Errorf("next: %s", s.Next)
	}
	_, err := a.Credential("maps", transport.UsageClient)
	for _, words := range []string{"cr-old is expired since " + ended.UTC().Format("2006-01-02 15:04") + " UTC", "kagimori-server credential issue TERMINAL --service maps"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: want %q", err, words)
		}
	}
	give("cr-new", now.Add(time.Hour))
	if s := a.Status().Credentials; len(s.Expired) != 0 || s.Next != "" || s.Total != 2 {
		t.Errorf("after another one is here: %+v", s)
	}
}
