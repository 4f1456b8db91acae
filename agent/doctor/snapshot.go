package doctor

import (
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
)

// A Snapshot is how things are at one moment. What is nil or zero was not to be
// had, and nothing is concluded from it.
type Snapshot struct {
	Program  string
	StateDir string
	Running  bool // a daemon made it, of itself
	// Storage is why key storage and store are not open, nil when they are, or
	// when nobody has tried.
	Storage error
	Open    bool
	// Health and Use are the answers of key storage: what it says of itself, and
	// whether the device's key could be used just now.
	Health    *hsm.Health
	HealthErr error
	Use       error
	Store     *store.State
	Disk      *Disk
	Unit      *Unit // nil: not under systemd
	Clock     Time
	// Certificates are those that matter: the identity's, and of each service the
	// one that lasts longest.
	Certificates []Cert
	Link         Link
	Audit        *audit.Report
	Held         Held
}

// Time is what the clocks show.
type Time struct {
	System, Floor time.Time
	Trusted       bool          // a server has told the time
	Off           time.Duration // of the system clock, while Trusted
	Plausible     bool          // the system clock could be right
}

// Cert is a certificate and how long it is good by the clock that counts.
type Cert struct {
	What    string // "identity", "credential cr-1 for maps"
	Expires time.Time
	Left    time.Duration
	Life    time.Duration
	Next    string // what to do about this one; empty: what the class says
}

// Link is the way to the management server.
type Link struct {
	Wanted  bool // this terminal has a server
	Up      bool
	Refused bool
	Server  string
	Error   string // of the last attempt; empty: none has failed since it was up
	Next    string
}

// Held is what is under way or waits.
type Held struct {
	Offer      bool // an operator code stands
	Copying    bool // keys are being fetched
	PIN        bool // a PIN is being judged by the chip
	Results    int  // of commands, that the server has not acknowledged
	Requested  int  // credentials asked for
	Unreported int  // holdings that the server does not know of
	Untold     int  // key copies that it does not know where they stand
	Copies     []Copy
}
