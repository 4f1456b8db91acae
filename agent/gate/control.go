package gate

import (
	"context"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport/control"
)

// Report is what com.kagimori.gate.Status says: the door, and the agent that
// it stands on.
type Report struct {
	Gate  Door         `json:"gate"`
	Agent agent.Status `json:"agent"`
}

// Interface is com.kagimori.gate: what the door has to say, beside what every
// program with an agent offers.
func (g *Gate) Interface(a *agent.Agent) control.Interface {
	return control.Interface{
		Name: "com.kagimori.gate", Doc: "The gate that admits terminals to a service.",
		Methods: append([]control.Method{{
			Name: "Status", Class: control.Read, Out: Report{},
			Doc: "How the gate is: whether it admits anybody and why not, its certificate, the lists of revoked\n" +
				"credentials, connections and refusals; and its agent: key storage, link, clock.",
			Handle: func(_ context.Context, call *control.Call) error {
				return call.Reply(Report{Gate: g.Status(), Agent: a.Status()})
			},
		}}, a.Methods()...),
	}
}
