package transport

// Commands (DESIGN D1, req: L8). The terminal polls on every connect, at set
// intervals, and when the server says that something is ready; it gets one
// command or an explicit none. A command stays on the server's table until the
// terminal's result for it is committed there.

// MaxDetail is the length in bytes of a result's text.
const MaxDetail = 512

// CommandReady is a wake-up: poll now.
type CommandReady struct{}

// CommandPoll asks for the oldest command that is not settled.
type CommandPoll struct{}

// CommandNext answers a poll. Command is nil when there is none. Nonce is what
// a proof of holding (CredentialClaim) on this connection is made over.
type CommandNext struct {
	Command *Command `cbor:"1,keyasint"`
	Nonce   [32]byte `cbor:"2,keyasint"`
}

// Command is one order. Body is the message of the kind, for example
// CredentialOrder for "credential.issue".
type Command struct {
	ID   ID     `cbor:"1,keyasint"`
	Kind string `cbor:"2,keyasint"`
	Body Raw    `cbor:"3,keyasint"`
}

// CommandState is how a command ended.
type CommandState string

const (
	CommandDone    CommandState = "done"    // the effect is durable
	CommandRefused CommandState = "refused" // understood, and not obeyed: Detail says why
	CommandUnknown CommandState = "unknown" // this terminal does not know the kind
)

// CommandResult is the terminal's own acknowledgement, sent until CommandAck.
type CommandResult struct {
	Command ID           `cbor:"1,keyasint"`
	State   CommandState `cbor:"2,keyasint"`
	Detail  string       `cbor:"3,keyasint,omitempty"`
}

// CommandAck says that the result is committed.
type CommandAck struct {
	Command ID `cbor:"1,keyasint"`
}

// Type implements Body.
func (*CommandReady) Type() string  { return "command.ready" }
func (*CommandPoll) Type() string   { return "command.poll" }
func (*CommandNext) Type() string   { return "command.next" }
func (*CommandResult) Type() string { return "command.result" }
func (*CommandAck) Type() string    { return "command.ack" }
