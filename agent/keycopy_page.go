package agent

import (
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// A copy of a thousand keys tells no more than it must, and all that it must.

const (
	// eventKeys is how many keys one event lists. More come before it with events of
	// their own, whose step is stepListed.
	eventKeys  = 256
	stepListed = "listed"
	stepArmed  = "armed"
	// itemEvents is about how often progress is told in one copy.
	itemEvents = 100
)

// keysOf lists the entries, those in only or all.
func keysOf(entries []transport.KeycopyEntry, only []transport.Name) (list []KeycopyKey) {
	wanted := make(map[transport.Name]bool, len(only))
	for _, id := range only {
		wanted[id] = true
	}
	for _, e := range entries {
		if only == nil || wanted[e.ID] {
			list = append(list, KeycopyKey{ID: e.ID, Service: e.Service, Subject: e.Subject, Transfer: e.Transfer})
		}
	}
	return list
}

// worthTelling says whether people are told of ev: of many items only every so many.
func worthTelling(ev keycopy.Event) bool {
	return ev.Kind != keycopy.EventItem || ev.Items <= itemEvents || ev.Item == ev.Items || ev.Item*itemEvents/ev.Items != (ev.Item-1)*itemEvents/ev.Items
}

// page sends what the first or the last event of a call has no room for before it.
func page(call *control.Call, ev KeycopyEvent) (KeycopyEvent, error) {
	for len(ev.Keys) > eventKeys {
		if err := call.Continue(KeycopyEvent{Step: stepListed, Items: ev.Items, Keys: ev.Keys[:eventKeys]}); err != nil {
			return ev, err
		}
		ev.Keys = ev.Keys[eventKeys:]
	}
	return ev, nil
}

// pass sends an event between the two. They list the keys, so it need not.
func pass(call *control.Call, ev KeycopyEvent) error {
	if len(ev.Keys) > eventKeys {
		ev.Keys = nil
	}
	return call.Continue(ev)
}
