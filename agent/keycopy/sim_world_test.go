package keycopy

// The simulator: a Source and a Target, run by the production drivers (Serve,
// Fetch, Resume) on a simulated disk (sim_disk_test.go, sim_journal_test.go),
// link (sim_link_test.go), clock and source of randomness, with an operator who
// does what the programs ask for. Everything that can be interrupted is an
// operation with a number; a script says which fault strikes before which
// operation. sim_check_test.go has what must hold, sim_run_test.go the scripts.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// The faults, each before an operation.
const (
	cutSource   = 'S' // power cut; the letter after the number is a tear
	cutTarget   = 'T'
	dropLink    = 'L' // what is on its way is lost
	dropArrives = 'l' // what is on its way arrives
	dropHalf    = 'H' // only the Target notices
	release     = 'R' // the Source's old connection goes on
	expireCode  = 'X' // five minutes pass
	abandon     = 'A' // keycopy abandon on the Source, or its window is over
	offerAnew   = 'N' // the operator makes a new code, and types it, too early
	failWrite   = 'E' // if the operation is a write, it fails
	loseSource  = 's' // dead for good, unless it is found again
	loseTarget  = 't'
)

// A fault strikes before operation at.
type fault struct {
	at   int
	kind rune
	keep tear // of a power cut
}

// A script says all about one run.
type script struct {
	mode     transport.KeycopyMode
	items    string // "copy", "move", "mixed"; "forced": copied ones under offer --move
	identity bool
	refused  bool // one more item, which the Target has no use for
	wrong    int  // wrong codes typed before the right one
	found    bool // an end that was lost turns up after the last resort
	seed     uint64
	faults   []fault
}

func (s script) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s identity=%t refused=%t wrong=%d found=%t seed=%d", s.mode, s.items, s.identity, s.refused, s.wrong, s.found, s.seed)
	for _, f := range s.faults {
		fmt.Fprintf(&b, " %d%c", f.at, f.kind)
		if f.keep != 0 {
			fmt.Fprintf(&b, "%c", f.keep)
		}
	}
	return b.String()
}

// parseScript reads what String gives.
func parseScript(text string) (s script, err error) {
	words := strings.Fields(text)
	if len(words) < 7 {
		return s, errors.New("a script has at least seven words")
	}
	if _, err := fmt.Sscanf(strings.Join(words[:7], " "), "%s %s identity=%t refused=%t wrong=%d found=%t seed=%d",
		&s.mode, &s.items, &s.identity, &s.refused, &s.wrong, &s.found, &s.seed); err != nil {
		return s, fmt.Errorf("script %q: %w", text, err)
	}
	for _, w := range words[7:] {
		n := strings.IndexFunc(w, func(r rune) bool { return r < '0' || r > '9' })
		if n < 1 {
			return s, fmt.Errorf("script: fault %q", w)
		}
		f := fault{kind: rune(w[n])}
		if f.at, err = strconv.Atoi(w[:n]); err != nil {
			return s, err
		}
		if len(w) > n+1 {
			f.keep = tear(w[n+1])
		}
		s.faults = append(s.faults, f)
	}
	return s, nil
}

type world struct {
	script         script
	mutant         mutant
	mangle         func(c *simConn, f transport.KeycopyFrame) []transport.KeycopyFrame // in flight; nil: as sent
	rng            *mathrand.ChaCha8
	now            Instant
	source, target *simEnd
	items          []transport.Name // as the Source had them at first
	before         map[transport.Name]simKey
	moving         map[transport.Name]bool // leaves the Source
	sourceID       simIdentity
	targetID       simIdentity
	link           [2]*simConn // the present connection: Source's view, Target's
	strands        []*strand

	n      int      // operations so far
	ops    []string // what they were
	faults []fault  // that are still to strike
	struck int      // faults so far

	codes   []*simCode
	spoken  string                // the code that the operator reads to the Target
	offers  int                   // codes made
	typed   int                   // codes typed
	arms    int                   // fetches that failed
	opened  map[transport.ID]int  // which code opened a transaction
	settled map[transport.ID]bool // transactions that cannot go on by themselves
	eager   bool                  // the operator types a new code as soon as there is one
	proofs  uint64                // PROOFs that left the Target
	judged  uint64                // verdicts that left the Source

	lied                     bool // a person reclaimed or activated, and the other end was alive
	said                     bool // a conflict was found and told
	orphan, moment, wasFound bool // sim_resort_test.go

	tuples     map[tuple]bool
	violations []violation
	trace      []string
	tracing    bool
}

// A violation names the property of docs/models that does not hold.
type violation struct{ property, detail string }

func (w *world) violate(format string, args ...any) { w.broken("other", format, args...) }

func (w *world) broken(property, format string, args ...any) {
	v := violation{property, fmt.Sprintf(format, args...)}
	w.note("VIOLATION %s: %s", v.property, v.detail)
	if len(w.violations) < 20 {
		w.violations = append(w.violations, v)
	}
}

func (w *world) note(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%4d  ", w.n)+fmt.Sprintf(format, args...))
	}
}

type simIdentity struct {
	key  *ecdsa.PrivateKey
	spki []byte
}

const (
	maxOperations = 4000
	maxRounds     = 40
	tick          = 10 * time.Millisecond
)

var errRunaway = errors.New("too many operations")

// op is one operation of e: a fault may strike before it.
func (w *world) op(e *simEnd, what string) error {
	w.n++
	w.advance(tick)
	w.note("%s: %s", e.name, what)
	w.ops = append(w.ops, e.name+" "+what)
	if w.n > maxOperations {
		panic(errRunaway)
	}
	failed := false
	for len(w.faults) > 0 && w.faults[0].at <= w.n {
		f := w.faults[0]
		w.faults = w.faults[1:]
		w.note("FAULT %c%c", f.kind, max(f.keep, ' '))
		w.struck++
		failed = w.strike(f) && strings.HasPrefix(what, "write") || failed
	}
	if failed && e.code != nil { // a disk that fails ends the run
		e.code.excused = true
	}
	if !e.up {
		panic(powerCut{})
	}
	if failed {
		return errDisk
	}
	return nil
}

func (w *world) strike(f fault) (fail bool) {
	switch f.kind {
	case cutSource, cutTarget, loseSource, loseTarget:
		e := w.source
		if f.kind == cutTarget || f.kind == loseTarget {
			e = w.target
		}
		if e.up {
			e.cut(f.keep)
		}
		if f.kind == loseSource || f.kind == loseTarget {
			w.die(e)
		}
	case dropLink, dropArrives:
		w.drop(f.kind == dropArrives)
	case dropHalf:
		w.dropHalf()
	case release:
		for _, s := range w.strands {
			s.held = false
		}
	case expireCode:
		for _, c := range w.codes {
			c.excused = true
		}
		w.advance(CodeLifetime + time.Second)
	case abandon:
		w.abandon()
	case offerAnew:
		if w.source.up && w.offers > 0 {
			w.newOffer()
			w.eager = true
		}
	case failWrite:
		return true
	}
	w.check("after a fault")
	return false
}

func (w *world) advance(d time.Duration) {
	w.now.Wall, w.now.Date, w.now.Mono = w.now.Wall.Add(d), w.now.Date.Add(d), w.now.Mono+d
}

var twoIdentities = sync.OnceValue(func() (ids [2]simIdentity) {
	for n := range ids {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			panic(err)
		}
		ids[n] = simIdentity{key, spki}
	}
	return ids
})

func newWorld(s script, m mutant) *world {
	seed := [32]byte{byte(s.seed), byte(s.seed >> 8), byte(s.seed >> 16), byte(s.seed >> 24)}
	w := &world{script: s, mutant: m, rng: mathrand.NewChaCha8(seed), now: moment(0, 0), faults: s.faults,
		before: map[transport.Name]simKey{}, moving: map[transport.Name]bool{}, tuples: map[tuple]bool{}, settled: map[transport.ID]bool{}, opened: map[transport.ID]int{}}
	ids := twoIdentities()
	w.sourceID, w.targetID = ids[0], ids[1]
	w.source = &simEnd{w: w, name: "Source", safe: newStore()}
	w.target = &simEnd{w: w, name: "Target", safe: newStore()}
	entry := &simEntry{}
	for _, r := range s.records() {
		record, err := transport.Marshal(&r)
		if err != nil {
			panic(err)
		}
		k := simKey{ID: r.ID, Use: useActive, Record: record}
		w.items, w.before[r.ID] = append(w.items, r.ID), k
		w.moving[r.ID] = s.items == "forced" || r.Transfer == transport.TransferMove
		entry.Keys = append(entry.Keys, k)
	}
	w.source.disk.append(encodeEntry(entry))
	w.source.disk.sync()
	w.source.boot()
	w.target.boot()
	return w
}

// records are what the Source has at first: two of each kind of item, so that
// there is a first and a last one.
func (s script) records() []transport.CredentialRecord {
	records := someRecords(5)
	for i := range records {
		switch {
		case i == 4:
			records[i].Kind, records[i].Chain = refusedKind, nil
			records[i].Secret = transport.CredentialSecret{Form: transport.SecretPassword, Bytes: []byte("login\npassword")}
		case s.items == "move", s.items == "mixed" && i%2 == 1:
			records[i].Transfer = transport.TransferMove
		}
	}
	switch {
	case s.refused:
	case s.items == "mixed":
		records = records[:4]
	default:
		records = records[:2]
	}
	return records
}

func (w *world) end(e *simEnd, device simIdentity) End {
	return End{Device: transport.NewDeviceID(device.spki), Attempts: e, Clock: func() Instant { return w.now }, Random: w.rng,
		Modes: []transport.KeycopyMode{w.script.mode},
		Progress: func(ev Event) {
			if e.up {
				w.event(e, ev)
			}
		}}
}

func (w *world) sourceConfig() SourceConfig {
	return SourceConfig{End: w.end(w.source, w.sourceID), Codes: []SecurityCode{hmacCode([]byte(fleetKey), "default", 2)}, Journal: w.source,
		Records: func(context.Context, []transport.Name, *transport.KeycopyParent) ([]transport.CredentialRecord, []transport.KeycopyWithheld, error) {
			return w.source.records(), nil, nil
		},
		Move: w.script.items == "forced"}
}

func (w *world) targetConfig() TargetConfig {
	cfg := TargetConfig{End: w.end(w.target, w.targetID), Code: hmacCode([]byte(fleetKey), "default", 2), Want: transport.TransferMove, Journal: w.target}
	if w.script.identity {
		cfg.Identity = w.targetID.key
	}
	return cfg
}

// newCode is in the RAM of e from now on.
func (w *world) newCode(e *simEnd, digits string) *OperatorCode {
	b := append([]byte(digits), '0'+damm([]byte(digits)))
	e.code = &simCode{digits: b, of: w.offers}
	if w.mutant.keepCode {
		e.code.digits = append([]byte(nil), b...)
	}
	w.codes = append(w.codes, e.code)
	return &OperatorCode{digits: hsm.NewSecret(b), since: w.now}
}
