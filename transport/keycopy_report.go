package transport

// What terminals tell the server about key copies when they next meet it, and
// how it settles what only a person could decide without it.

// KeycopySide is which end of a key copy a terminal was.
type KeycopySide string

// The two ends.
const (
	KeycopySource KeycopySide = "source" // the old terminal
	KeycopyTarget KeycopySide = "target" // the new one
)

// MaxKeycopyReported is how many items one KeycopyReport carries.
const MaxKeycopyReported = 128

// A KeycopyReport says where a transaction stands at the sender. One with more
// items than MaxKeycopyReported takes several, by growing Offset; the server
// takes them in as they come. The Target proves what it holds by a
// CredentialClaim for each credential; the Source can prove nothing about what
// it has not any more, but can only give up holdings of its own.
type KeycopyReport struct {
	Txn      ID           `cbor:"1,keyasint"`
	Side     KeycopySide  `cbor:"2,keyasint"`
	Peer     DeviceID     `cbor:"3,keyasint"` // the other end's
	PeerName Name         `cbor:"4,keyasint"` // if it proved one; else empty
	Mode     KeycopyMode  `cbor:"5,keyasint"`
	Phase    KeycopyPhase `cbor:"6,keyasint"`
	At       int64        `cbor:"7,keyasint"` // when the codes matched, Unix seconds; 0: unknown
	Changed  int64        `cbor:"8,keyasint"` // when it came to Phase
	// Forced is set if an administrator reclaimed or activated.
	Forced bool `cbor:"9,keyasint"`
	// Signature is of the Target's receipt, as the Source has it on record, and
	// Signed the KeycopySigned that it is over.
	Signature []byte                `cbor:"10,keyasint,omitempty"`
	Total     uint32                `cbor:"11,keyasint"` // items of the transaction
	Offset    uint32                `cbor:"12,keyasint"` // of Items in them
	Items     []KeycopyReportedItem `cbor:"13,keyasint"`
	Signed    []byte                `cbor:"14,keyasint,omitempty"`
}

// A KeycopyReportedItem is one item of a transaction. Taken says that the
// Target has it, as far as the sender knows.
type KeycopyReportedItem struct {
	ID       Name     `cbor:"1,keyasint"`
	Transfer Transfer `cbor:"2,keyasint"`
	Taken    bool     `cbor:"3,keyasint"`
}

// KeycopyReported acknowledges a KeycopyReport: it is on record.
type KeycopyReported struct {
	Txn    ID           `cbor:"1,keyasint"`
	Phase  KeycopyPhase `cbor:"2,keyasint"`
	Offset uint32       `cbor:"3,keyasint"`
}

// KeycopySettle asks leave to take back what moved (Want is KeycopyReclaimed,
// from the Source) or to use what is staged (KeycopyActive, from the Target)
// because the other end is gone for good. It reports the transaction as well.
type KeycopySettle struct {
	Txn  ID           `cbor:"1,keyasint"`
	Side KeycopySide  `cbor:"2,keyasint"`
	Peer DeviceID     `cbor:"3,keyasint"`
	Want KeycopyPhase `cbor:"4,keyasint"`
}

// KeycopySettled answers it. Whoever asks first is allowed; the other end is
// not any more.
type KeycopySettled struct {
	Txn     ID     `cbor:"1,keyasint"`
	Allowed bool   `cbor:"2,keyasint"`
	Why     string `cbor:"3,keyasint"` // if it is not allowed
}

// Type implements Body.
func (*KeycopyReport) Type() string   { return "keycopy.report" }
func (*KeycopyReported) Type() string { return "keycopy.reported" }
func (*KeycopySettle) Type() string   { return "keycopy.settle" }
func (*KeycopySettled) Type() string  { return "keycopy.settled" }
