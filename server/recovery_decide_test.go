package server

import (
	"crypto/rand"
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// A terminal that has its key from elsewhere takes its request back: nobody can
// approve it any more, and it is none of those that wait.
func TestRecoveryThatIsGivenUp(t *testing.T) {
	r := newRig(t)
	x := r.lost("nav-001").exchange()
	for n := range maxOpenRecoveries + 1 {
		x.ask.ID = transport.NewID(rand.Reader)
		x.state(transport.RecoveryAsked)
		switch n {
		case 0:
			r.call("RecoveryApprove", x.param(), nil)
		case 1:
			r.call("RecoveryDeny", x.param(), nil)
		}
		for range 2 { // the first answer was lost
			s := want[transport.RecoveryState](t, r.as("nav-001", x.new).say(&transport.RecoveryTaken{ID: x.ask.ID, GivenUp: true}))
			if s.State != transport.RecoveryDenied {
				t.Errorf("told %+v", s)
			}
		}
		r.refused("RecoveryApprove", x.param(), control.Conflict)
		var i RecoveryInfo
		r.call("RecoveryDeny", x.param(), &i)
		if i.State != store.RecoveryGivenUp {
			t.Errorf("%+v", i)
		}
		x.state(transport.RecoveryDenied) // and nothing is released
	}
	r.reenroll("nav-001")
	var page RecoveryPage
	r.call("RecoveryList", ListParams{Filter: map[string]string{"state": string(store.RecoveryGivenUp)}}, &page)
	if len(page.Recoveries) != maxOpenRecoveries+1 {
		t.Errorf("%+v", page.Recoveries)
	}
}
