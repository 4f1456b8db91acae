package agent

import (
	"context"
	"errors"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport/control"
)

// The methods about key copies that are on record.

// Parameters and replies of these methods.
type (
	// DealParams names a key copy by its id, or the first digits of it; nothing is
	// the only one for which the method can do something.
	DealParams struct {
		Txn string `json:"txn,omitempty"`
	}
	// ResumeParams: Address is where the other end is now, if not where it was.
	ResumeParams struct {
		Txn     string `json:"txn,omitempty"`
		Address string `json:"address,omitempty"`
	}
	// KeycopyDeals is one piece of the list.
	KeycopyDeals struct {
		Copies []KeycopyDeal `json:"copies"`
	}
)

// dealPage is how many copies, or keys of one, a message carries.
const dealPage = 64

func (a *Agent) dealMethods() []control.Method {
	forced := func(r resort) func(context.Context, *control.Call) error {
		return func(ctx context.Context, call *control.Call) error {
			var in DealParams
			if err := call.Params(&in); err != nil {
				return err
			}
			s, err := a.lastResort(ctx, in.Txn, r)
			if err != nil {
				return err
			}
			return call.Reply(s)
		}
	}
	return []control.Method{
		{
			Name: "KeycopyList", Class: control.Read, Out: KeycopyDeals{}, Stream: true, Handle: a.keycopyList,
			Doc: "The key copies on record, open ones first, then the newest first.",
		},
		{
			Name: "KeycopyShow", Class: control.Read, In: DealParams{}, Out: KeycopyDealPage{}, Stream: true, Handle: a.keycopyShow,
			Doc: "One key copy with each of its keys. The first reply has all but the rest of the keys.",
		},
		{
			Name: "KeycopyResume", Class: control.Operate, In: ResumeParams{}, Out: KeycopyEvent{}, Stream: true, Handle: a.keycopyResume,
			Doc: "On the new terminal: goes on now with a copy that is open, as it does by itself from time to time.\n" +
				"address (host:port) is where the old terminal is, if not where it was.",
		},
		{
			Name: "KeycopyAbandon", Class: control.Operate, In: DealParams{}, Out: KeycopySettled{}, Handle: forced(abandoned()),
			Doc: "Ends a copy that is open and by which no key can be lost.",
		},
		{
			Name: "KeycopyReclaim", Class: control.Admin, In: DealParams{}, Out: KeycopySettled{}, Handle: forced(reclaimed()),
			Doc: "On the old terminal: takes back what moved, since the new one is gone for good. If the management\n" +
				"server is in reach it must allow it.",
		},
		{
			Name: "KeycopyActivate", Class: control.Admin, In: DealParams{}, Out: KeycopySettled{}, Handle: forced(activated()),
			Doc: "On the new terminal: puts to use what waits, since the old one is gone for good. If the management\n" +
				"server is in reach it must allow it.",
		},
		{
			Name: "KeycopyDrop", Class: control.Admin, In: DealParams{}, Out: KeycopySettled{}, Handle: forced(dropped()),
			Doc: "On the new terminal: destroys what waits for the old one to give it up. If the old one is gone for\n" +
				"good, so are the keys then.",
		},
	}
}

func (a *Agent) keycopyList(_ context.Context, call *control.Call) error {
	list, err := a.deals()
	if err != nil {
		return err
	}
	for len(list) > dealPage {
		if err := call.Continue(KeycopyDeals{list[:dealPage]}); err != nil {
			return err
		}
		list = list[dealPage:]
	}
	return call.Reply(KeycopyDeals{list})
}

func (a *Agent) keycopyShow(_ context.Context, call *control.Call) error {
	var in DealParams
	if err := call.Params(&in); err != nil {
		return err
	}
	id, err := a.pickDeal(in.Txn, func(t *keycopy.Transaction) bool { return t.Phase.Open() })
	if err != nil {
		return err
	}
	page, err := a.showDeal(id)
	if err != nil {
		return err
	}
	for len(page.Keys) > dealPage {
		first := *page
		first.Keys = page.Keys[:dealPage]
		if err := call.Continue(first); err != nil {
			return err
		}
		page = &KeycopyDealPage{Keys: page.Keys[dealPage:]}
	}
	return call.Reply(page)
}

func (a *Agent) keycopyResume(ctx context.Context, call *control.Call) error {
	var in ResumeParams
	if err := call.Params(&in); err != nil {
		return err
	}
	var lost error
	last, err := a.resumeNow(ctx, in.Txn, in.Address, func(ev KeycopyEvent) {
		if lost == nil && ev.Step != string(keycopy.EventClosed) { // the reply says that
			lost = call.Continue(ev)
		}
	})
	if err != nil {
		return err
	}
	return errors.Join(lost, call.Reply(last))
}
