package agent

import (
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// copyDesk is the server's side of what terminals tell of key copies, under the
// server's lock.
type copyDesk struct {
	reports []transport.KeycopyReport
	claims  []transport.CredentialClaim
	settles []transport.KeycopySettle
	settle  func(*transport.KeycopySettle) transport.Body // nil: it is allowed
}

func (d *copyDesk) answer(e *transport.Envelope) (transport.Body, error) {
	switch e.Type {
	case "keycopy.report":
		r, err := transport.Open[transport.KeycopyReport](e)
		if err != nil {
			return nil, err
		}
		d.reports = append(d.reports, *r)
		return &transport.KeycopyReported{Txn: r.Txn, Phase: r.Phase, Offset: r.Offset}, nil
	case "keycopy.settle":
		m, err := transport.Open[transport.KeycopySettle](e)
		if err != nil {
			return nil, err
		}
		d.settles = append(d.settles, *m)
		if d.settle != nil {
			return d.settle(m), nil
		}
		return &transport.KeycopySettled{Txn: m.Txn, Allowed: true}, nil
	}
	return nil, fmt.Errorf("unknown type %q", e.Type)
}
