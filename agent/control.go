package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// What people ask for (DESIGN D13): com.kagimori.agent on the control socket.
// Secrets in parameters and replies are sealed to keys of the connection.

// Labels of secrets on the control socket.
const (
	LabelPassphrase = "passphrase"
	LabelCode       = "operator code"
)

// Parameters and replies of the methods.
type (
	// ProvisionParams: Bundle is the file; Passphrase is sealed under LabelPassphrase.
	ProvisionParams struct {
		Bundle     []byte `json:"bundle"`
		Passphrase string `json:"passphrase"`
	}
	// CredentialPage is one piece of the list.
	CredentialPage struct {
		Credentials []CredentialInfo `json:"credentials"`
	}
	// CredentialParams names one credential.
	CredentialParams struct {
		ID string `json:"id"`
	}
	// RelayPage is the list of relays.
	RelayPage struct {
		Relays []RelayStatus `json:"relays"`
	}
	// OfferParams: no Credentials means all; the operator code comes sealed to
	// ReplyKey under LabelCode. PIN is sealed under LabelPIN, if one is set. Code is
	// the operator's own code, sealed under LabelCode, where that is allowed.
	OfferParams struct {
		PIN         string           `json:"pin,omitempty"`
		Code        string           `json:"code,omitempty"`
		Move        bool             `json:"move,omitempty"` // also what may be copied
		Credentials []transport.Name `json:"credentials,omitempty"`
		ReplyKey    string           `json:"reply_key"`
	}
	// FetchParams: Code is sealed under LabelCode; no Credentials means all.
	FetchParams struct {
		Address     string                `json:"address"`
		Code        string                `json:"code"`
		CopyOnly    bool                  `json:"copy_only,omitempty"` // leave what can only be moved
		Credentials []transport.Name      `json:"credentials,omitempty"`
		Mode        transport.KeycopyMode `json:"mode,omitempty"` // none: the first that is enabled here
	}
	// FindReply is where offers are announced; anybody can say so.
	FindReply struct {
		Addresses []string `json:"addresses"`
	}
	// DisarmReply says whether there was an offer.
	DisarmReply struct {
		Disarmed bool `json:"disarmed"`
	}
)

// pageSize is how many credentials one message carries: about 120 KiB at most.
const pageSize = 128

// Interface is com.kagimori.agent.
func (a *Agent) Interface() control.Interface {
	methods := append(a.whenReady(control.Method{
		Name: "Status", Class: control.Read, Out: Status{}, Handle: func(_ context.Context, call *control.Call) error { return call.Reply(a.Status()) },
		Doc: "How this terminal is: key storage, link, clock, credentials, relays, key copy.",
	}), a.Methods()...)
	return control.Interface{
		Name: "com.kagimori.agent", Doc: "The agent that keeps a terminal's keys.",
		Methods: append(append(append(methods, a.whenReady(append(a.pinMethods(), a.importMethods()...)...)...), a.whenReady(a.dealMethods()...)...), a.whenReady(
			control.Method{
				Name: "RelayList", Class: control.Read, Out: RelayPage{}, Handle: a.relayList,
				Doc: "The relays: local ports through which programs use credentials.",
			},
			control.Method{
				Name: "KeycopyOffer", Class: control.Operate, In: OfferParams{}, Out: KeycopyEvent{}, Stream: true, Handle: a.keycopyOffer,
				Doc: "Arms this terminal to give copies of its credentials to a new one. The first reply has the\n" +
					"operator code, sealed to reply_key; further ones say what happens. Hanging up leaves it armed.",
			},
			control.Method{
				Name: "KeycopyDisarm", Class: control.Operate, Out: DisarmReply{}, Handle: a.keycopyDisarm,
				Doc: "Destroys the operator code of the offer that stands.",
			},
			control.Method{
				Name: "KeycopyUnlock", Class: control.Admin, Handle: func(context.Context, *control.Call) error { return a.unlock() },
				Doc: "Forgets the wrong operator codes that have locked this terminal.",
			},
			control.Method{
				Name: "KeycopyFind", Class: control.Operate, Out: FindReply{}, Handle: a.keycopyFind,
				Doc: "Asks on the local networks for two seconds where an offer waits. What answers may be anybody:\n" +
					"the operator code decides.",
			},
			control.Method{
				Name: "KeycopyFetch", Class: control.Operate, In: FetchParams{}, Out: KeycopyEvent{}, Stream: true, Handle: a.keycopyFetch,
				Doc: "Copies credentials from the terminal at address (host:port), which offers them.",
			})...),
	}
}

// startTime is how long a call waits for a daemon that is starting.
const startTime = 5 * time.Second

// whenReady holds calls back until it is known whether key storage opens: a verb
// that follows the start of the daemon at once is to find it as it will be.
func (a *Agent) whenReady(methods ...control.Method) []control.Method {
	for i, m := range methods {
		methods[i].Handle = func(ctx context.Context, call *control.Call) error {
			give := time.NewTimer(startTime)
			defer give.Stop()
			select {
			case <-a.ready:
			case <-give.C:
			case <-ctx.Done():
			}
			return m.Handle(ctx, call)
		}
	}
	return methods
}

// Methods are those that every program with an agent offers.
func (a *Agent) Methods() []control.Method {
	return a.whenReady(slices.Concat(a.auditMethods(), a.doctorMethods(), a.recoveryMethods(), a.passphraseMethods(), a.bootMethods(), a.chipMethods(), []control.Method{
		{
			Name: "Provision", Class: control.Admin, In: ProvisionParams{}, Out: ProvisionResult{}, Handle: a.provision,
			Doc: "Takes in a provisioning bundle. The passphrase is sealed under the label \"passphrase\".",
		},
		{
			Name: "CredentialList", Class: control.Read, Out: CredentialPage{}, Stream: true, Handle: a.credentialList,
			Doc: "The credentials that this device holds, without secrets, by id.",
		},
		{
			Name: "CredentialShow", Class: control.Read, In: CredentialParams{}, Out: CredentialDetail{}, Handle: a.credentialShow,
			Doc: "One credential, with what its certificate says, without its secret.",
		},
	})...)
}

func (a *Agent) provision(ctx context.Context, call *control.Call) error {
	var in ProvisionParams
	if err := call.Params(&in); err != nil {
		return err
	}
	if len(in.Bundle) > transport.MaxBundle {
		return control.Problemf(control.BadInput, "name the bundle file", "a bundle has at most %d bytes", transport.MaxBundle)
	}
	passphrase, err := call.Unseal(LabelPassphrase, in.Passphrase)
	if err != nil {
		return err
	}
	defer passphrase.Wipe()
	result, err := a.Provision(ctx, in.Bundle, passphrase)
	if err != nil {
		return err
	}
	return call.Reply(result)
}

func (a *Agent) credentialList(_ context.Context, call *control.Call) error {
	list, err := a.Credentials()
	if err != nil {
		return err
	}
	for len(list) > pageSize {
		if err := call.Continue(CredentialPage{list[:pageSize]}); err != nil {
			return err
		}
		list = list[pageSize:]
	}
	if list == nil {
		list = []CredentialInfo{}
	}
	return call.Reply(CredentialPage{list})
}

func (a *Agent) credentialShow(_ context.Context, call *control.Call) error {
	var in CredentialParams
	if err := call.Params(&in); err != nil {
		return err
	}
	id, err := transport.ParseName(in.ID)
	if err != nil {
		return control.Problemf(control.BadInput, "list them with: "+a.cfg.Program+" credential list", "%w", err)
	}
	d, err := a.credential(id)
	if err != nil {
		return err
	}
	if d == nil {
		return control.Problemf(control.NotFound, "list them with: "+a.cfg.Program+" credential list", "this terminal holds no credential %s", id)
	}
	return call.Reply(d)
}

func (a *Agent) relayList(_ context.Context, call *control.Call) error {
	page := RelayPage{Relays: []RelayStatus{}}
	for _, r := range a.relays {
		page.Relays = append(page.Relays, r.status(a))
	}
	return call.Reply(page)
}

func (a *Agent) keycopyOffer(ctx context.Context, call *control.Call) error {
	var in OfferParams
	if err := call.Params(&in); err != nil {
		return err
	}
	v, err := a.open()
	if err != nil {
		return err
	}
	order, err := a.offerOrder(ctx, call, v, &in)
	if err != nil {
		return err
	}
	o, code, err := a.arm(ctx, order)
	if err != nil {
		return err
	}
	first := o.chosen
	if code != nil {
		first.Code, err = control.SealTo(in.ReplyKey, LabelCode, code)
		clear(code)
	}
	if err == nil {
		first, err = page(call, first)
	}
	if err == nil {
		err = call.Continue(first)
	}
	if err != nil {
		o.source.Disarm() // nobody has seen the code
		return err
	}
	return o.follow(ctx, call)
}

// offerOrder is what the caller wants, once the PIN is right.
func (a *Agent) offerOrder(ctx context.Context, call *control.Call, v *vault, in *OfferParams) (order armOrder, err error) {
	var pin transport.Sensitive
	if in.PIN != "" {
		if pin, err = call.Unseal(LabelPIN, in.PIN); err != nil {
			return order, err
		}
	}
	if err := a.judgePIN(ctx, v, pin); err != nil {
		return order, err
	}
	order = armOrder{selected: in.Credentials, move: in.Move}
	if in.Code != "" {
		order.typed, err = call.Unseal(LabelCode, in.Code)
	}
	return order, err
}

// follow tells the caller what happens until the offer has ended.
func (o *offering) follow(ctx context.Context, call *control.Call) error {
	for {
		select {
		case <-ctx.Done(): // the offer stands until its time is over
			return ctx.Err()
		case ev := <-o.events:
			if err := pass(call, ev); err != nil {
				return err
			}
			continue
		case <-o.done:
		}
		break
	}
	for len(o.events) > 0 {
		if err := pass(call, <-o.events); err != nil {
			return err
		}
	}
	last, err := o.result()
	if err != nil {
		return err
	}
	if last, err = page(call, last); err != nil {
		return err
	}
	return call.Reply(last)
}

func (a *Agent) keycopyDisarm(_ context.Context, call *control.Call) error {
	return call.Reply(DisarmReply{Disarmed: a.disarm()})
}

func (a *Agent) keycopyFetch(ctx context.Context, call *control.Call) error {
	var in FetchParams
	if err := call.Params(&in); err != nil {
		return err
	}
	code, err := call.Unseal(LabelCode, in.Code)
	if err != nil {
		return err
	}
	var lost error
	last, err := a.fetch(ctx, fetchOrder{in.Address, code, in.Credentials, in.CopyOnly, in.Mode}, func(ev KeycopyEvent) {
		if lost == nil && ev.Step != string(keycopy.EventClosed) { // the reply says that
			lost = pass(call, ev)
		}
	})
	if err != nil {
		return err
	}
	if *last, err = page(call, *last); lost == nil {
		lost = err
	}
	return errors.Join(lost, call.Reply(last))
}
