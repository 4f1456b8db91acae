package transport

import (
	"errors"
	"fmt"
	"time"
)

// The wire of keycopy/1: a Source (old terminal) gives credentials to a Target
// (new terminal). This file says what frames, limits, modes and errors there
// are; keycopy_message.go has the bodies, keycopy_manifest.go what is offered.
//
// A frame is uint32 length of the body, uint8 type, body; big endian. A body
// is one deterministic CBOR map with integer keys. Transcripts hash bodies as
// sent. All lists of numbers here only grow.

// KeycopyVersion is in every HELLO and in the ALPN name.
const KeycopyVersion = 1

// KeycopyExporterLabel and KeycopyExporterSize (bytes) give the TLS exporter
// that binds a run to its channel.
const (
	KeycopyExporterLabel = "EXPORTER-keycopy/1"
	KeycopyExporterSize  = 64
)

// Limits of a key copy, in bytes unless said otherwise.
const (
	// MaxKeycopyHandshake bounds a body before authentication, and every body
	// that the Source takes.
	MaxKeycopyHandshake = 4 << 10
	// MaxKeycopyGrant bounds the body of GRANT.
	MaxKeycopyGrant = 512 << 10
	// MaxKeycopyRecord bounds one encoded credential.
	MaxKeycopyRecord = 64 << 10
	// MaxKeycopyItem bounds the body of ITEM.
	MaxKeycopyItem = MaxKeycopyRecord + 256
	// MaxKeycopyItems is how many credentials one transaction carries.
	MaxKeycopyItems = 4096
	// MaxKeycopyTotal bounds the encoded credentials of one transaction.
	MaxKeycopyTotal = 16 << 20
	// MaxKeycopySelect is how many ids a HELLO may ask for: more do not fit
	// beside a KeycopyParent.
	MaxKeycopySelect = 42
	// MaxKeycopyWithheld is how many refused credentials a manifest names; the
	// rest are counted.
	MaxKeycopyWithheld = 256
)

// Deadlines of a key copy.
const (
	KeycopyConnectTimeout = 5 * time.Second
	KeycopyTLSTimeout     = 5 * time.Second
	KeycopyMessageTimeout = 10 * time.Second
	// KeycopyInstallTimeout is how long the Source waits for RECEIPT: the
	// Target, authenticated by then, may have a slow chip to fill.
	KeycopyInstallTimeout = 60 * time.Second
	KeycopySessionTimeout = 120 * time.Second
)

// KeycopyType is the type byte of a frame.
type KeycopyType uint8

// The frames. COMMIT and ACTIVATED are for transactions that move something.
const (
	KeycopyTypeHello     KeycopyType = 0x01 // Target to Source
	KeycopyTypeHelloAck  KeycopyType = 0x02 // Source to Target
	KeycopyTypeProof     KeycopyType = 0x03 // Target to Source
	KeycopyTypeGrant     KeycopyType = 0x04 // Source to Target
	KeycopyTypeItem      KeycopyType = 0x05 // Source to Target, as many as the manifest has entries
	KeycopyTypeReceipt   KeycopyType = 0x06 // Target to Source
	KeycopyTypeCommit    KeycopyType = 0x07 // Source to Target
	KeycopyTypeActivated KeycopyType = 0x08 // Target to Source
	KeycopyTypeClose     KeycopyType = 0x09 // Source to Target
	KeycopyTypeResume    KeycopyType = 0x0A // Target to Source, instead of HELLO
	KeycopyTypeResumed   KeycopyType = 0x0B // Source to Target, answers RESUME
	KeycopyTypeError     KeycopyType = 0x0F // either way; the last frame of a connection
)

var keycopyTypeText = map[KeycopyType]string{
	KeycopyTypeHello: "HELLO", KeycopyTypeHelloAck: "HELLO_ACK", KeycopyTypeProof: "PROOF", KeycopyTypeGrant: "GRANT",
	KeycopyTypeItem: "ITEM", KeycopyTypeReceipt: "RECEIPT", KeycopyTypeCommit: "COMMIT", KeycopyTypeActivated: "ACTIVATED",
	KeycopyTypeClose: "CLOSE", KeycopyTypeResume: "RESUME", KeycopyTypeResumed: "RESUMED", KeycopyTypeError: "ERROR",
}

func (t KeycopyType) String() string {
	if s, ok := keycopyTypeText[t]; ok {
		return s
	}
	return fmt.Sprintf("frame %#02x", uint8(t))
}

// A KeycopyFrame is one message on the wire, body still encoded.
type KeycopyFrame struct {
	Type KeycopyType
	Body []byte
}

// KeycopyMode is how the two ends authenticate and derive the item key.
type KeycopyMode string

// The modes. KeycopyPAKE is the default. The other two are the flows of the
// patent's figures 4 and 5; they need an identity certificate at both ends.
const (
	KeycopyPAKE   KeycopyMode = "pake"
	KeycopyDirect KeycopyMode = "direct"
	KeycopyKEK    KeycopyMode = "kek"
)

// KeycopyModes lists them, the default first.
func KeycopyModes() []KeycopyMode { return []KeycopyMode{KeycopyPAKE, KeycopyKEK, KeycopyDirect} }

// ALPN is the TLS protocol name of a mode, so that two ends of different modes
// never get as far as a message.
func (m KeycopyMode) ALPN() string { return "keycopy/1-" + string(m) }

// SealsCode says whether the operator code itself crosses the wire, sealed under
// the security code: whoever is in between and has that reads it. Such a mode
// needs an identity certificate at both ends.
func (m KeycopyMode) SealsCode() bool { return m == KeycopyDirect || m == KeycopyKEK }

// KeycopySuite numbers a set of algorithms. A later draft or the RFC of CPace
// gets a number of its own.
type KeycopySuite uint8

// KeycopyCPace21 is CPACE-RISTR255-SHA512 of draft-irtf-cfrg-cpace-21 with
// HKDF-SHA512, HMAC-SHA256 and ChaCha20-Poly1305.
const KeycopyCPace21 KeycopySuite = 1

// String is the suite's name in the transcript.
func (s KeycopySuite) String() string {
	if s == KeycopyCPace21 {
		return "CPACE-RISTR255-SHA512 draft-irtf-cfrg-cpace-21"
	}
	return fmt.Sprintf("suite %d", uint8(s))
}

// A KeycopyPhase is where a transaction stands at one end, durably. It is
// written before the frame that says so is sent. The list only grows.
type KeycopyPhase uint8

// The phases of a Source (below 16) and of a Target.
const (
	KeycopyOffered     KeycopyPhase = 1  // it is on record who gets what; keys may leave
	KeycopyCommitted   KeycopyPhase = 2  // receipt is in; what moves is disabled here
	KeycopyDone        KeycopyPhase = 3  // receipt is in; what moved is destroyed here
	KeycopyReclaimed   KeycopyPhase = 4  // an administrator took back what moved
	KeycopyAbandoned   KeycopyPhase = 5  // ended before a receipt; nothing has changed here
	KeycopyStarted     KeycopyPhase = 16 // can be resumed without an operator
	KeycopyStaged      KeycopyPhase = 17 // has all items; what is copied is in use, what moves is not
	KeycopyActive      KeycopyPhase = 18 // what moved is in use
	KeycopyClosed      KeycopyPhase = 19 // the Source has said that it is done
	KeycopyUnreceipted KeycopyPhase = 20 // what was copied is in use, the Source took no receipt
	KeycopyDropped     KeycopyPhase = 21 // ended; what was staged is destroyed
)

var keycopyPhaseText = map[KeycopyPhase]string{
	KeycopyOffered: "offered", KeycopyCommitted: "committed", KeycopyDone: "done", KeycopyReclaimed: "reclaimed", KeycopyAbandoned: "abandoned",
	KeycopyStarted: "started", KeycopyStaged: "staged", KeycopyActive: "active", KeycopyClosed: "closed", KeycopyUnreceipted: "unreceipted",
	KeycopyDropped: "dropped",
}

func (p KeycopyPhase) String() string {
	if s, ok := keycopyPhaseText[p]; ok {
		return s
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// Open says whether the transaction goes on by itself when the two ends meet.
func (p KeycopyPhase) Open() bool {
	switch p {
	case KeycopyOffered, KeycopyCommitted, KeycopyStarted, KeycopyStaged, KeycopyActive:
		return true
	}
	return false
}

// A KeycopyChannel is what a run needs to know of the TLS connection below it.
type KeycopyChannel struct {
	// Exporter is the TLS exporter under KeycopyExporterLabel. It does not
	// cover the client certificate, hence the keys below.
	Exporter [KeycopyExporterSize]byte
	// Mode is the one whose ALPN name both ends agreed on.
	Mode KeycopyMode
	// TargetKey and SourceKey are the DER public keys of the certificates in
	// use; TargetKey is empty when the Target showed none.
	TargetKey, SourceKey []byte
	// Peer is the other end's terminal name if it proved one by an identity
	// certificate, else empty.
	Peer Name
	// Identified is true if this end showed an identity certificate.
	Identified bool
	// Remote is the other end's network address, for people.
	Remote string
}

// KeycopyFault is the code of an ERROR frame, and the error of either end.
type KeycopyFault uint8

// The faults. A wrong security code, operator code, tag or ciphertext all give
// KeycopyAuthFailed.
const (
	KeycopyProtocol         KeycopyFault = iota + 1 // malformed, out of order, over a limit
	KeycopyVersionRefused                           // not KeycopyVersion
	KeycopyModeRefused                              // mode, suite or move not allowed here
	KeycopyCodeUnknown                              // no security code of that group and epoch
	KeycopyAuthFailed                               // never says what was wrong
	KeycopyNotArmed                                 // no operator code: none made, expired, used up, or locked
	KeycopyBusy                                     // another Target is being served
	KeycopyTxnUnknown                               // RESUME of something unknown
	KeycopyTxnConflict                              // RESUME of something that went on elsewhere
	KeycopyManifestRejected                         // the Target takes none of it
	KeycopyStoreFailed                              // a durable write failed
	KeycopyAborted                                  // somebody or something stopped it
	KeycopyTimeout                                  // a deadline passed
)

var keycopyFaultText = map[KeycopyFault]string{
	KeycopyProtocol:         "the other end does not speak this protocol correctly; check that both terminals run current versions",
	KeycopyVersionRefused:   "the versions of the two terminals do not fit; update the older one",
	KeycopyModeRefused:      "the mode asked for is not allowed; check the key copy settings of both terminals",
	KeycopyCodeUnknown:      "the terminals have no security code in common; let both connect to the management server, or provision both from new bundles of one group",
	KeycopyAuthFailed:       "the codes of the two terminals do not match; check the operator code, and that both were provisioned for one group",
	KeycopyNotArmed:         "no operator code is in force on the old terminal; run there: kagimori keycopy offer",
	KeycopyBusy:             "the old terminal is serving another one; try again when that is done",
	KeycopyTxnUnknown:       "the other terminal does not know this copy, or cannot prove that it does; check that it is the right one",
	KeycopyTxnConflict:      "this copy went on in another way at the other terminal; compare the two: kagimori keycopy list",
	KeycopyManifestRejected: "nothing that was offered can be taken; see the reasons listed",
	KeycopyStoreFailed:      "a terminal could not write its store; check its disk",
	KeycopyAborted:          "the copy was stopped",
	KeycopyTimeout:          "the other terminal did not answer in time; check the network, then try again",
}

func (f KeycopyFault) Error() string {
	if s, ok := keycopyFaultText[f]; ok {
		return s
	}
	return fmt.Sprintf("the other terminal reports fault %d, which this version does not know; update this terminal", uint8(f))
}

// ErrKeycopyStranger is a connection whose peer did not prove the security
// code; its address is slowed down.
var ErrKeycopyStranger = errors.New("the peer did not prove the security code")
