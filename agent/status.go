package agent

import (
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// Status is how a terminal is. Everything in it may be shown to anybody who may
// talk to the daemon.
type Status struct {
	Program    string               `json:"program"`
	Version    string               `json:"version"`
	Device     *transport.DeviceID  `json:"device,omitempty"` // absent while key storage is not open
	Kind       transport.BundleKind `json:"kind,omitempty"`   // absent before provisioning
	Deployment transport.Name       `json:"deployment,omitempty"`
	Terminal   transport.Name       `json:"terminal,omitempty"`
	Service    transport.Name       `json:"service,omitempty"` // that a gate guards
	Group      transport.Name       `json:"group,omitempty"`
	Epoch      uint32               `json:"security_code_epoch,omitempty"`  // the newest
	Epochs     []uint32             `json:"security_code_epochs,omitempty"` // all that are accepted, newest first

	Keys        KeysStatus        `json:"key_storage"`
	Identity    *IdentityStatus   `json:"identity,omitempty"` // absent before enrollment
	Link        LinkStatus        `json:"link"`
	Clock       ClockStatus       `json:"clock"`
	Credentials CredentialSummary `json:"credentials"`
	Relays      []RelayStatus     `json:"relays"`
	Revoked     *RevokedStatus    `json:"revoked_gates,omitempty"` // absent while nothing is known of them
	Keycopy     *KeycopyStatus    `json:"keycopy,omitempty"`
}

// CredentialSummary counts credentials.
type CredentialSummary struct {
	Total      int       `json:"total"`
	Usable     int       `json:"usable"`
	Unreported int       `json:"unreported"` // holdings that the server does not know of yet
	Away       int       `json:"away"`       // of Total: moving to another terminal
	Staged     int       `json:"staged"`     // moving to this one, and not of Total yet
	Pending    int       `json:"pending"`    // asked for and not here yet
	NextExpiry time.Time `json:"next_expiry,omitzero"`
	NextID     string    `json:"next_expiry_credential,omitempty"`
	// Expired are those that have expired and that no other here replaces, at
	// most expiredShown.
	Expired []ExpiredCredential `json:"expired,omitempty"`
	Next    string              `json:"next,omitempty"` // what somebody can do about them
}

// ExpiredCredential names one.
type ExpiredCredential struct {
	ID      transport.Name `json:"id"`
	Service transport.Name `json:"service"`
	Since   time.Time      `json:"since"`
}

// expiredShown is how many expired credentials the status names.
const expiredShown = 8

// KeycopyStatus is whether an offer stands, and what was copied last.
type KeycopyStatus struct {
	Offer   string `json:"offer"`             // none, armed, serving
	Listen  string `json:"listen,omitempty"`  // while the new terminal may come
	Seconds int    `json:"seconds,omitempty"` // that its code still lives
	// Locked is for how long no offer may be made, LockedFetch for how long no
	// code may be typed, after too many wrong ones.
	Locked      int  `json:"locked_seconds,omitempty"`
	LockedFetch int  `json:"fetch_locked_seconds,omitempty"`
	PIN         bool `json:"pin"` // an offer asks for it
	// Codes says who makes operator codes: generated, typed, either.
	Codes  keycopy.CodePolicy `json:"codes"`
	Last   string             `json:"last,omitempty"` // the last copy, in words
	LastAt time.Time          `json:"last_at,omitzero"`
	// Open are the copies that are not over. Shut is why the new terminal cannot
	// come back for one.
	Open []KeycopyOpen `json:"open,omitempty"`
	Shut string        `json:"shut,omitempty"`
}

// Line is the status in a few words, for the service manager.
func (s Status) Line() string {
	if !s.Keys.Open {
		return "waits for key storage: " + s.Keys.Text
	}
	line := string(s.Link.State)
	if s.Terminal != "" {
		line = string(s.Terminal) + ": " + line
	}
	return fmt.Sprintf("%s; %s, %d usable", line, count(s.Credentials.Total, "credential"), s.Credentials.Usable)
}

// Status describes the agent as it is now.
func (a *Agent) Status() Status {
	s := Status{Program: a.cfg.Program, Version: a.cfg.Version, Link: a.link.get(a.clock), Clock: a.clock.Status(), Relays: []RelayStatus{}}
	for _, r := range a.relays {
		s.Relays = append(s.Relays, r.status(a))
	}
	a.mu.Lock()
	v, problem := a.vault, a.problem
	a.mu.Unlock()
	if v == nil {
		s.Keys = KeysStatus{Text: problem.Message, Next: problem.Next}
		return s
	}
	s.Device, s.Keys, s.Revoked = &v.device, a.keysOpen(v), v.revocations.status()
	if s.Keys.Reenroll && s.Link.State == LinkRefused {
		s.Link.Next = "" // it would have the state directory removed; Keys.Next is the way
	}
	self, err := v.self()
	if err == nil && self != nil {
		self.wipe()
		s.Kind, s.Deployment, s.Terminal, s.Service = self.Kind, self.Deployment, self.Terminal, self.Service
		s.Group, s.Epoch, s.Epochs = self.Group, self.Epoch, self.codes()
	}
	if chain, chainErr := v.identityChain(); chainErr == nil {
		s.Identity = identityStatus(chain, a.clock)
	} else if err == nil {
		err = chainErr
	}
	if err == nil {
		if s.Credentials, err = v.summary(); len(s.Credentials.Expired) > 0 {
			s.Credentials.Next = issueAnew(s.Terminal, s.Credentials.Expired[0].Service)
		}
	}
	if a.cfg.Keycopy != nil && err == nil {
		s.Keycopy, err = a.keycopyStatus(v)
	}
	if err != nil {
		p, _ := a.explain(err)
		s.Keys = KeysStatus{Level: v.module.Level(), Text: p.Message, Next: p.Next}
	}
	return s
}

func (v *vault) summary() (s CredentialSummary, err error) {
	serves := map[transport.Name]bool{}
	err = v.store.View(func(tx *store.Tx) error {
		err := eachHolding(tx, func(h *holdingRecord) error {
			s.Total++
			if h.Away != nil {
				s.Away++
				return nil
			}
			if unusable(&h.Record, v.clock) != "" {
				s.expired(&h.Record, v.clock)
				return nil
			}
			s.Usable++
			serves[h.Record.Service] = true
			if at := expiry(&h.Record); !at.IsZero() && (s.NextExpiry.IsZero() || at.Before(s.NextExpiry)) {
				s.NextExpiry, s.NextID = at, string(h.Record.ID)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for bucket, n := range map[string]*int{bucketClaims: &s.Unreported, bucketPending: &s.Pending, bucketStaged: &s.Staged} {
			err := tx.Each(bucket, func(string, func(any) error) error {
				*n++
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	s.Expired = slices.DeleteFunc(s.Expired, func(e ExpiredCredential) bool { return serves[e.Service] }) // replaced
	s.Expired = s.Expired[:min(len(s.Expired), expiredShown)]
	return s, err
}

// expired notes r if it is.
func (s *CredentialSummary) expired(r *transport.CredentialRecord, clock *Clock) {
	since, expired := expiredSince(r, clock)
	if !expired || r.State != transport.CredentialActive {
		return
	}
	s.Expired = append(s.Expired, ExpiredCredential{ID: r.ID, Service: r.Service, Since: since})
}

// issueAnew says how an expired credential is replaced.
func issueAnew(terminal, service transport.Name) string {
	if terminal == "" {
		terminal = "TERMINAL"
	}
	return fmt.Sprintf("have it issued anew: kagimori-server credential issue %s --service %s", terminal, service)
}

func (a *Agent) keycopyStatus(v *vault) (*KeycopyStatus, error) {
	s := &KeycopyStatus{Offer: "none", Codes: keycopy.CodesGenerated}
	if c := a.cfg.Keycopy; c != nil && c.Codes != "" {
		s.Codes = c.Codes
	}
	a.copies.mu.Lock()
	o := a.copies.offer
	s.Listen, s.Shut = a.copies.listen, a.copies.shut
	a.copies.mu.Unlock()
	if o != nil {
		state, left := o.source.State()
		s.Offer, s.Listen, s.Seconds = state.String(), o.chosen.Listen, int(left.Seconds())
	}
	err := v.store.View(func(tx *store.Tx) error {
		for r, seconds := range map[role]*int{roleSource: &s.Locked, roleTarget: &s.LockedFetch} {
			wait, err := locked(tx, r, a.clock.Steady())
			if err != nil {
				return err
			}
			*seconds = int(wait.Seconds())
		}
		s.PIN = tx.Blob(blobPIN) != nil
		return s.deals(tx, a.cfg.Program)
	})
	return s, err
}

// CredentialInfo is one credential without its secret.
type CredentialInfo struct {
	ID         transport.Name            `json:"id"`
	Kind       transport.CredentialKind  `json:"kind"`
	Service    transport.Name            `json:"service"`
	Subject    transport.Name            `json:"subject"`
	Usage      transport.Usage           `json:"usage"`
	State      transport.CredentialState `json:"state"`
	Usable     bool                      `json:"usable"`
	Why        string                    `json:"why,omitempty"`    // it is not usable
	Expires    time.Time                 `json:"expires,omitzero"` // absent: never
	Remaining  int64                     `json:"remaining_seconds"`
	Transfer   transport.Transfer        `json:"transfer"`
	ChipOnly   bool                      `json:"chip_only"`
	InChip     bool                      `json:"in_chip"` // its private key is in the chip
	Secret     string                    `json:"secret"`  // what it is, in words: nothing of what is in it
	Origin     Origin                    `json:"origin"`
	Since      time.Time                 `json:"since,omitzero"`
	Source     *transport.DeviceID       `json:"source_device,omitempty"` // of a copy
	SourceName transport.Name            `json:"source,omitempty"`
	Reported   bool                      `json:"reported"` // the server knows that this device holds it
	Refusal    string                    `json:"report_refused,omitempty"`
	// Away is the key copy by which it moves to another terminal, Staged the one by
	// which it moves to this one: it is not in use here.
	Away   *transport.ID `json:"moving_by,omitempty"`
	Staged *transport.ID `json:"staged_by,omitempty"`
	Txn    *transport.ID `json:"copied_by,omitempty"` // the key copy that brought it
}

// CredentialDetail is one credential with what its certificate says.
type CredentialDetail struct {
	CredentialInfo
	Serial      string    `json:"serial,omitempty"`
	Issuer      string    `json:"issuer,omitempty"`
	Names       []string  `json:"names,omitempty"` // subject alternative names
	NotBefore   time.Time `json:"not_before,omitzero"`
	Algorithm   string    `json:"algorithm,omitempty"`
	ServerName  string    `json:"server_name,omitempty"`
	Endpoints   []string  `json:"endpoints,omitempty"`
	Anchors     []string  `json:"anchors,omitempty"` // subjects of the roots that the service is judged by
	Certificate string    `json:"certificate,omitempty"`
	PublicKey   string    `json:"public_key,omitempty"` // of a bare key pair: SHA-256 of its SubjectPublicKeyInfo, hexadecimal
}

// Credentials lists what this device holds, by id.
func (a *Agent) Credentials() (list []CredentialInfo, err error) {
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	err = v.store.View(func(tx *store.Tx) error {
		err := eachHolding(tx, func(h *holdingRecord) error {
			info, err := v.info(tx, h)
			list = append(list, info)
			return err
		})
		if err != nil {
			return err
		}
		return eachStaged(tx, func(_ string, txn transport.ID, h *holdingRecord) error {
			info, err := v.info(tx, h)
			info.Usable, info.Reported, info.Staged = false, false, &txn
			info.Why = fmt.Sprintf("staged by key copy %s: not in use before the old terminal has given it up", short(txn))
			list = append(list, info)
			return err
		})
	})
	return list, err
}

func (v *vault) info(tx *store.Tx, h *holdingRecord) (CredentialInfo, error) {
	r := &h.Record
	i := CredentialInfo{
		ID: r.ID, Kind: r.Kind, Service: r.Service, Subject: r.Subject, Usage: r.Usage, State: r.State,
		Why: h.unusable(v.clock), Expires: expiry(r), InChip: r.Secret.Form == transport.SecretTPM, Secret: secretText(&r.Secret), Transfer: r.Transfer, ChipOnly: r.ChipOnly,
		Origin: h.Origin, SourceName: h.SourceName,
	}
	i.Usable, i.Txn = i.Why == "", h.Txn
	if h.Away != nil {
		i.Away = &h.Away.Txn
	}
	if at, known := judgedAt(r, v.clock); known && !i.Expires.IsZero() {
		i.Remaining = int64(max(0, i.Expires.Sub(at)).Seconds())
	}
	if h.Since != 0 {
		i.Since = time.Unix(h.Since, 0).UTC()
	}
	if h.Source != (transport.DeviceID{}) {
		i.Source = &h.Source
	}
	var claim claimRecord
	open, err := tx.Get(bucketClaims, string(r.ID), &claim)
	i.Reported, i.Refusal = !open && r.Kind == transport.KindCertificate, claim.Fault
	return i, err
}

// credential shows one; nil if it is not here.
func (a *Agent) credential(id transport.Name) (d *CredentialDetail, err error) {
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	err = v.store.View(func(tx *store.Tx) error {
		h, err := holding(tx, id)
		if err != nil || h == nil {
			return err
		}
		defer h.wipe()
		info, err := v.info(tx, h)
		if err != nil {
			return err
		}
		d, err = detail(info, &h.Record)
		return err
	})
	return d, err
}

func detail(info CredentialInfo, r *transport.CredentialRecord) (*CredentialDetail, error) {
	if r.Kind != transport.KindCertificate {
		return &CredentialDetail{CredentialInfo: info, ServerName: r.ServerName, Endpoints: slices.Clone(r.Endpoints), PublicKey: publicKeyID(&r.Secret)}, nil
	}
	chain, err := transport.ParseChain(r.Chain)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", r.ID, err)
	}
	leaf := chain[0]
	d := &CredentialDetail{
		CredentialInfo: info, Serial: fmt.Sprintf("%x", leaf.SerialNumber), Issuer: leaf.Issuer.String(), NotBefore: leaf.NotBefore.UTC(),
		Algorithm: leaf.PublicKeyAlgorithm.String() + ", signed with " + leaf.SignatureAlgorithm.String(), ServerName: r.ServerName,
		Endpoints: slices.Clone(r.Endpoints), Names: slices.Clone(leaf.DNSNames),
	}
	for _, u := range leaf.URIs {
		d.Names = append(d.Names, u.String())
	}
	for _, ip := range leaf.IPAddresses {
		d.Names = append(d.Names, ip.String())
	}
	for _, der := range r.Anchors {
		if anchor, err := transport.ParseChain([][]byte{der}); err == nil {
			d.Anchors = append(d.Anchors, anchor[0].Subject.String())
		}
	}
	var b strings.Builder
	for _, der := range r.Chain {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return nil, err
		}
	}
	d.Certificate = b.String()
	return d, nil
}
