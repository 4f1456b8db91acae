package agent

import (
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// RecoveryStatus is what is prepared, and what can be done.
type RecoveryStatus struct {
	// Wrap is the version of the server's recovery key that the store key is
	// wrapped for; 0: the server could not help.
	Wrap uint32 `json:"server_wrap"`
	// Exported is when a recovery file was made last, as far as is known.
	Exported time.Time `json:"exported,omitzero"`
	// Reenroll: the keys inside the earlier key storage are gone, this device has
	// to be enrolled anew.
	Reenroll bool          `json:"reenroll"`
	Aside    []AsideStatus `json:"aside"`
	// Possible are the verbs that may help now, best first.
	Possible []string `json:"possible"`
	Text     string   `json:"text"`
	Next     string   `json:"next,omitempty"`
}

// AsideStatus is one store that is set aside.
type AsideStatus struct {
	Name   string                     `json:"name"` // of its directory
	Store  transport.ID               `json:"store"`
	Device *transport.DeviceID        `json:"device,omitempty"` // that made it; absent: not known
	Since  time.Time                  `json:"since,omitzero"`
	Wrap   bool                       `json:"server_wrap"`     // the server can be asked
	State  transport.RecoveryProgress `json:"state,omitempty"` // of the request; empty: the server has not been asked yet
	// Refused: the server has not taken the request; nobody was asked to decide.
	Refused bool          `json:"refused"`
	ID      *transport.ID `json:"request,omitempty"`
	Taken   bool          `json:"taken"`
}

// recoveryStatus looks at an open vault.
func (v *vault) recoveryStatus(program string) (s RecoveryStatus, err error) {
	s = RecoveryStatus{Aside: []AsideStatus{}, Possible: []string{}}
	var named bool // this device is a terminal
	err = v.store.View(func(tx *store.Tx) error {
		var self terminalRecord
		if _, err := tx.Get(bucketTerminal, keySelf, &self); err != nil {
			return err
		}
		self.wipe()
		named = self.Terminal != ""
		if w := v.ownWrap(tx, self.Deployment); w != nil {
			s.Wrap = w.Version
		}
		var e exportRecord
		if found, err := tx.Get(bucketRecovery, keyExport, &e); err != nil {
			return err
		} else if found {
			s.Exported = time.Unix(e.Time, 0).UTC()
		}
		if s.Reenroll, err = tx.Get(bucketRecovery, keyLost, &deviceRecord{}); err != nil {
			return err
		}
		list, err := asideEntries(tx)
		for _, e := range list {
			e.wipe()
			s.Aside = append(s.Aside, e.status())
		}
		return err
	})
	s.describe(program, named)
	return s, err
}

func (e *asideEntry) status() AsideStatus {
	s := AsideStatus{Name: e.name, Store: e.Store, Wrap: e.Wrap != nil, State: e.State, Refused: e.Refused, Taken: e.Taken}
	if e.Since > 0 {
		s.Since = time.Unix(e.Since, 0).UTC()
	}
	if e.Wrap != nil {
		s.Device, s.ID = &e.Wrap.Device, &e.ID
	}
	return s
}

// describe says in words how recovery stands while key storage is open.
func (s *RecoveryStatus) describe(program string, named bool) {
	bundle := "have an administrator make a bundle with `kagimori-server terminal reenroll`, and take it in: " + program + " provision BUNDLE"
	switch {
	case s.Reenroll:
		s.Text = "the keys inside the earlier key storage are gone; credentials work, all that needs this device's identity waits"
		s.Next = bundle
		return
	case s.Wrap > 0 && !s.Exported.IsZero():
		s.Text = "the store key can come back from the server, or from the recovery file"
	case s.Wrap > 0:
		s.Text = "the store key can come back from the server"
	case !s.Exported.IsZero():
		s.Text = "the store key can come back from the recovery file"
	default:
		s.Text = "nothing is prepared: if key storage is lost, so is all that is kept here"
		s.Next = "connect to the server once, or make a recovery file: " + program + " recovery export FILE"
	}
	for _, x := range s.Aside {
		switch {
		case x.Taken:
			continue
		case !x.Wrap:
			s.Next = "if there is a recovery file of the store that is set aside: " + program + " recovery import FILE"
		case x.Refused:
			s.Next = fmt.Sprintf("the server does not take request %s: its log says why; if there is a recovery file: %s recovery import FILE", x.ID, program)
		case x.State == "" && !named:
			s.Next = bundle
		case x.State == "":
			s.Next = "bring the server in reach: it is asked on the next connection; see: " + program + " status"
		case x.State == transport.RecoveryDenied:
			s.Next = fmt.Sprintf("an administrator has denied request %s; if that was wrong: kagimori-server recovery approve %s", x.ID, x.ID)
		case x.State == transport.RecoveryApproved, x.State == transport.RecoveryReleased:
			s.Next = "nothing: the key of the store that is set aside is on its way"
		default:
			s.Next = fmt.Sprintf("have an administrator decide on request %s: kagimori-server recovery approve %s", x.ID, x.ID)
		}
	}
}
