package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Credentials that an administrator brings: keys, logins and passwords of
// services that know nothing of certificates (req: L2). They come in and do not
// go out again, but for a key copy. Of certificates the server is the source.

// LabelCredential is the label of a credential's secret on the control socket.
const LabelCredential = "credential"

// MaxCredentialSecret bounds the secret of an import, in bytes.
const MaxCredentialSecret = maxPKCS8

// maxImported is how many imported credentials a terminal keeps.
const maxImported = 1024

// ImportParams: Secret is sealed under LabelCredential.
type ImportParams struct {
	Kind     transport.CredentialKind `json:"kind"`
	Form     transport.SecretForm     `json:"form,omitempty"` // of a symmetric key: hmac (default) or raw
	Service  string                   `json:"service"`
	Subject  string                   `json:"subject"`
	Transfer transport.Transfer       `json:"transfer,omitempty"` // default: copy
	Expires  time.Time                `json:"expires,omitzero"`   // absent: never
	Secret   string                   `json:"secret"`
	// Replace names an imported credential whose secret this one takes the place of.
	Replace string `json:"replace,omitempty"`
}

// importMethods bring credentials in and take them away.
func (a *Agent) importMethods() []control.Method {
	return []control.Method{
		{
			Name: "CredentialImport", Class: control.Admin, In: ImportParams{}, Out: CredentialInfo{}, Handle: a.credentialImport,
			Doc: "Takes in a key, key pair, login or encryption key of a service. The secret is sealed under the\nlabel \"credential\". There is no method that gives one out.",
		},
		{
			Name: "CredentialRemove", Class: control.Admin, In: CredentialParams{}, Handle: a.credentialRemove,
			Doc: "Destroys a credential without certificate on this terminal. Those with one are the server's to revoke.",
		},
	}
}

func (a *Agent) credentialImport(_ context.Context, call *control.Call) error {
	var in ImportParams
	if err := call.Params(&in); err != nil {
		return err
	}
	secret, err := call.Unseal(LabelCredential, in.Secret)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	v, err := a.open()
	if err != nil {
		return err
	}
	r, err := in.record(secret, v.clock.Earliest())
	if err != nil {
		return control.Problemf(control.BadInput, "see: "+a.cfg.Program+" credential import --help", "%w", err)
	}
	info, err := v.importRecord(r, in.Replace)
	if err != nil {
		return err
	}
	return call.Reply(info)
}

// record is what is to be kept. It lends secret, and now judges the expiry.
func (in *ImportParams) record(secret transport.Sensitive, now time.Time) (*transport.CredentialRecord, error) {
	if in.Kind == transport.KindCertificate {
		return nil, errors.New("certificates are issued by the server: kagimori-server credential issue")
	}
	forms := formsOf(in.Kind)
	if forms == nil {
		return nil, fmt.Errorf("kind %.20q is unknown; choose symmetric, key-pair, login or encryption", in.Kind)
	}
	r := &transport.CredentialRecord{
		ID: newImportID(), Kind: in.Kind, Usage: transport.UsageClient, State: transport.CredentialActive, Transfer: in.Transfer,
		Endpoints: []string{}, Anchors: [][]byte{}, Chain: [][]byte{}, Secret: transport.CredentialSecret{Form: in.Form, Bytes: secret},
	}
	if r.Transfer == "" {
		r.Transfer = transport.TransferCopy
	}
	if r.Secret.Form == "" {
		r.Secret.Form = forms[0]
	}
	if r.Secret.Form == transport.SecretTPM {
		return nil, errors.New("a key cannot be brought into the chip")
	}
	var err error
	if r.Service, err = transport.ParseName(in.Service); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if r.Subject, err = transport.ParseName(in.Subject); err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	if !in.Expires.IsZero() {
		if r.Expires = in.Expires.Unix(); r.Expires <= 0 || !in.Expires.After(now) {
			return nil, fmt.Errorf("it is expired since %s", in.Expires.UTC().Format("2006-01-02 15:04 UTC"))
		}
	}
	return r, checkRecord(r)
}

// newImportID draws an id that no server gives: 50 bits.
func newImportID() transport.Name {
	const letters = "abcdefghijklmnopqrstuvwxyz234567"
	var b [10]byte
	rand.Read(b[:])
	for i, v := range b {
		b[i] = letters[v%32]
	}
	return transport.Name("im-" + string(b[:]))
}

// importRecord keeps r, under the id of the one that it replaces, if any.
func (v *vault) importRecord(r *transport.CredentialRecord, replace string) (info CredentialInfo, err error) {
	err = v.update(func(tx *store.Tx) error {
		if replace != "" {
			old, err := v.imported(tx, replace)
			defer old.wipe()
			if err != nil {
				return err
			}
			if old.Record.Kind != r.Kind || old.Record.Service != r.Service || old.Record.Subject != r.Subject {
				return control.Problemf(control.Conflict, "leave --replace out for a further one", "%s is a %s of %s at %s", replace, old.Record.Kind, old.Record.Subject, old.Record.Service)
			}
			r.ID = old.Record.ID
		} else if err := roomForImport(tx); err != nil {
			return err
		}
		h := &holdingRecord{Record: *r, Origin: OriginImport, Since: v.clock.Stamp()}
		if err := errors.Join(hold(tx, h), v.audit(tx, audit.Imported, r.ID, "%s of %s at %s", r.Kind, r.Subject, r.Service)); err != nil {
			return err
		}
		info, err = v.info(tx, h)
		return err
	})
	return info, err
}

func roomForImport(tx *store.Tx) error {
	n := 0
	err := eachHolding(tx, func(h *holdingRecord) error {
		if h.Origin == OriginImport {
			n++
		}
		return nil
	})
	if err == nil && n >= maxImported {
		err = control.Problemf(control.Conflict, "remove some with: kagimori credential remove ID", "this terminal has %d imported credentials, the most that it keeps", n)
	}
	return err
}

// imported finds a credential without certificate that somebody named.
func (v *vault) imported(tx *store.Tx, id string) (*holdingRecord, error) {
	h, err := holding(tx, transport.Name(id))
	if err != nil {
		return nil, err
	}
	moving, err := movingBy(tx, h, transport.Name(id))
	switch {
	case err != nil:
		h.wipe()
		return nil, err
	case h == nil:
		return nil, control.Problemf(control.NotFound, "list them with `credential list`", "this terminal holds no credential %.63q", id)
	case h.Record.Kind == transport.KindCertificate:
		h.wipe()
		return nil, control.Problemf(control.Refused, "end it at the server: kagimori-server credential revoke "+id, "%s has a certificate: it is the server's to manage", id)
	case moving != "": // the other terminal has, or gets, this very secret
		h.wipe()
		return nil, control.Problemf(control.Conflict, "settle the key copy first: kagimori keycopy list", "%s is %s", id, moving)
	}
	return h, nil
}

func (a *Agent) credentialRemove(_ context.Context, call *control.Call) error {
	var in CredentialParams
	if err := call.Params(&in); err != nil {
		return err
	}
	v, err := a.open()
	if err != nil {
		return err
	}
	return v.remove(in.ID)
}

func (v *vault) remove(id string) error {
	return v.update(func(tx *store.Tx) error {
		h, err := v.imported(tx, id)
		defer h.wipe()
		if err != nil {
			return err
		}
		return errors.Join(tx.Delete(bucketCredentials, id), tx.Delete(bucketClaims, id),
			v.audit(tx, audit.Erased, h.Record.ID, "%s of %s at %s, by an administrator", h.Record.Kind, h.Record.Subject, h.Record.Service))
	})
}
