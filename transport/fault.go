package transport

import "fmt"

// A FaultCode is why a request was refused. The list only grows: old terminals
// meet new servers.
type FaultCode uint8

const (
	FaultMalformed FaultCode = iota + 1 // not a message of this version
	FaultUnknown                        // no such message type
	FaultRefused                        // not expected, wrong proof, or not yours: never says which
	FaultDevice                         // the terminal is enrolled with another device
	FaultRequest                        // the signing request does not fit the order
	FaultLater                          // not now, and nothing was changed: try again
	FaultClosed                         // the command is settled already
	FaultAttest                         // the terminal's TPM is to be proven, and is not; the text says why
)

var faultText = map[FaultCode]string{
	FaultMalformed: "the message is malformed",
	FaultUnknown:   "the message type is unknown",
	FaultRefused:   "refused",
	FaultDevice:    "this terminal is enrolled with another device; an administrator must run: kagimori-server terminal reenroll",
	FaultRequest:   "the signing request does not fit what was ordered",
	FaultLater:     "the server cannot do this now",
	FaultClosed:    "the command is settled already",
	FaultAttest:    "the key storage of this terminal is not proven to be a TPM",
}

// Fault answers a request that failed. Text is for people and may be empty.
type Fault struct {
	Code FaultCode `cbor:"1,keyasint"`
	Text string    `cbor:"2,keyasint,omitempty"`
}

// Type implements Body.
func (*Fault) Type() string { return "fault" }

func (f *Fault) Error() string {
	text, known := faultText[f.Code]
	if !known {
		text = fmt.Sprintf("fault %d", f.Code)
	}
	if f.Text != "" {
		text += ": " + f.Text
	}
	return text
}
