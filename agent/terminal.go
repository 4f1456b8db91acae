package agent

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// What a device knows of itself and its deployment. It learns it from a
// provisioning bundle, and from nowhere else (DESIGN D8).

// maxBundlesKept is how many ids of bundles taken in are remembered.
const maxBundlesKept = 16

// terminalRecord is what bundles made of this device (bucket "terminal", key
// "self"). Terminal, Servers and CommonKey are empty after a spare bundle.
type terminalRecord struct {
	Bundles    []transport.ID       `cbor:"1,keyasint"` // taken in, newest last
	Kind       transport.BundleKind `cbor:"2,keyasint"`
	Deployment transport.Name       `cbor:"3,keyasint"`
	Issued     int64                `cbor:"4,keyasint"` // of the newest, Unix seconds
	Root       []byte               `cbor:"5,keyasint"` // DER
	Group      transport.Name       `cbor:"6,keyasint"`
	Epoch      uint32               `cbor:"7,keyasint"`
	Terminal   transport.Name       `cbor:"8,keyasint"`
	Servers    []string             `cbor:"9,keyasint"`
	CommonKey  transport.Sensitive  `cbor:"10,keyasint"`
	Service    transport.Name       `cbor:"11,keyasint"`
	// Codes are the epochs of the security codes that are here, newest first; Epoch
	// is the newest. Empty: see codeBlob.
	Codes []uint32 `cbor:"12,keyasint,omitempty"`
}

// wipe overwrites the common key; nil is fine.
func (t *terminalRecord) wipe() {
	if t != nil {
		t.CommonKey.Wipe()
	}
}

// spare says that this device has a security code and no name yet.
func (t *terminalRecord) spare() bool { return t != nil && t.Kind == transport.BundleSpare }

// roots is the one root that everything in this deployment is judged under.
func (t *terminalRecord) roots() (*x509.CertPool, error) {
	root, err := x509.ParseCertificate(t.Root)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return pool, nil
}

// An Outcome is what taking in a bundle came to.
type Outcome string

const (
	OutcomeProvisioned Outcome = "provisioned" // the first one
	OutcomeUpgraded    Outcome = "upgraded"    // a spare device became a named terminal
	OutcomeReplaced    Outcome = "replaced"    // a newer bundle of the same terminal
	OutcomeUnchanged   Outcome = "unchanged"   // taken in before; nothing was done
)

// admit decides what a bundle makes of a device (DESIGN D8). It neither keeps
// nor wipes the bundle's secrets: the record gets a copy of the common key.
func admit(current *terminalRecord, b *transport.Bundle, program string, kinds []transport.BundleKind) (*terminalRecord, Outcome, error) {
	if !slices.Contains(kinds, b.Kind) {
		return nil, "", wrongKind(b, program)
	}
	next := &terminalRecord{
		Bundles: []transport.ID{b.ID}, Kind: b.Kind, Deployment: b.Deployment, Issued: b.Issued, Root: b.Root,
		Group: b.Group, Epoch: b.Epoch, Terminal: b.Terminal, Servers: b.Servers,
		CommonKey: slices.Clone(b.CommonKey), Service: b.Service,
	}
	if current == nil {
		return next, OutcomeProvisioned, nil
	}
	// The same bundle again is known by its id, so it comes before all else.
	if slices.Contains(current.Bundles, b.ID) {
		return current, OutcomeUnchanged, nil
	}
	next.Bundles = append(slices.Clone(current.Bundles), b.ID)
	if n := len(next.Bundles); n > maxBundlesKept {
		next.Bundles = next.Bundles[n-maxBundlesKept:]
	}
	if err := current.conflict(b); err != nil {
		return nil, "", err
	}
	if current.spare() && b.Kind != transport.BundleSpare {
		return next, OutcomeUpgraded, nil
	}
	return next, OutcomeReplaced, nil
}

// conflict says why a device that is provisioned must not take a bundle.
func (t *terminalRecord) conflict(b *transport.Bundle) error {
	const reset = "use a bundle made for this device; to give the device to someone else, stop the daemon and remove its state directory first"
	switch {
	case b.Deployment != t.Deployment:
		return control.Problemf(control.Conflict, reset,
			"this bundle is of deployment %s, and this device belongs to deployment %s", b.Deployment, t.Deployment)
	case !bytes.Equal(b.Root, t.Root):
		return control.Problemf(control.Conflict, reset,
			"this bundle is of another deployment that is also called %s: its root certificate is not ours", b.Deployment)
	case t.spare() && b.Kind == transport.BundleSpare && b.Issued < t.Issued, !t.spare() && b.Terminal == t.Terminal && b.Issued < t.Issued:
		return control.Problemf(control.Conflict, "use the newest bundle; older ones no longer open anything",
			"this bundle is older than the one that this device has taken in")
	case t.spare():
		return nil
	case b.Kind == transport.BundleSpare:
		return control.Problemf(control.Conflict, "nothing to do: a named terminal has all that a spare bundle holds",
			"this device is terminal %s already; a spare bundle is for a device without a name", t.Terminal)
	case b.Terminal != t.Terminal || b.Kind != t.Kind || b.Service != t.Service:
		return control.Problemf(control.Conflict, reset,
			"this bundle is for %s, and this device is %s", describe(b.Kind, b.Terminal, b.Service), describe(t.Kind, t.Terminal, t.Service))
	}
	return nil
}

func describe(kind transport.BundleKind, terminal, service transport.Name) string {
	if kind == transport.BundleGate {
		return fmt.Sprintf("gate %s of service %s", terminal, service)
	}
	return fmt.Sprintf("terminal %s", terminal)
}

func wrongKind(b *transport.Bundle, program string) error {
	switch b.Kind {
	case transport.BundleGate:
		return control.Problemf(control.BadInput, "give it to the gate: kagimori-gate provision",
			"this bundle is for %s, not for a terminal", describe(b.Kind, b.Terminal, b.Service))
	case transport.BundleTerminal:
		return control.Problemf(control.BadInput, "give it to the terminal: kagimori provision", "this bundle is for terminal %s, not for %s", b.Terminal, program)
	}
	return control.Problemf(control.BadInput, "give it to the terminal: kagimori provision", "this is a spare bundle; %s does not take one", program)
}
