package agent

import (
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// recover answers what a terminal says of its store.
func (s *server) recover(e *transport.Envelope) (transport.Body, error) {
	switch e.Type {
	case "terminal.state":
		m, err := transport.Open[transport.TerminalState](e)
		if err != nil {
			return nil, err
		}
		s.states = append(s.states, *m)
		noted := &transport.TerminalNoted{Recovery: s.recovery}
		if m.Recovery != s.recovery {
			noted.Key = s.recoveryKey
		}
		return noted, nil
	case "recovery.request":
		m, err := transport.Open[transport.RecoveryRequest](e)
		if err != nil {
			return nil, err
		}
		s.asked = append(s.asked, *m)
		if !s.approve {
			return &transport.RecoveryState{ID: m.ID, State: transport.RecoveryAsked}, nil
		}
		key, err := m.Wrap.Open(s.recoverySeed)
		if err != nil {
			return nil, err
		}
		return transport.RecoveryGrant{ID: m.ID, Deployment: testDeployment, Terminal: s.terminal, Device: s.device,
			Origin: m.Wrap.Device, Store: m.Wrap.Store}.Seal(m.Recipient, key)
	case "recovery.taken":
		m, err := transport.Open[transport.RecoveryTaken](e)
		if err != nil {
			return nil, err
		}
		s.taken = append(s.taken, *m)
		return &transport.RecoveryState{ID: m.ID, State: transport.RecoveryDone}, nil
	}
	return nil, fmt.Errorf("%s is not about a store", e.Type)
}
