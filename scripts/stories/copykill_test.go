package stories

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
)

// Key copies between real agents, with a chip each, over a line that loses one
// packet in twenty and takes a fifth of a second each way, while either agent
// is killed at random. Each run ends with exactly the keys that it should, or
// says that a new code is needed, which then works.

const (
	lineDelay = 200 * time.Millisecond // each way
	lineLoss  = 0.05                   // of the packets, each way
)

// A handover is one run: these keys go from here to there.
type handover struct {
	p        *pair
	from, to *terminal
	ids      []string
	move     bool
	before   map[string]key // what there held before

	offering *daemon
	code     string
	fetching *daemon
}

// A fate is when an end is killed, and for how long it stays off.
type fate struct {
	end       *terminal
	granted   bool // after counts from when the codes have matched, if they do
	after, up time.Duration
}

// fates draws what happens to a handover. A run without any takes some five
// round trips, two seconds, the last two of them after the codes have matched:
// most kills fall into those, the others anywhere, also while the ends are
// finding each other again.
func (p *pair) fates() (list []fate) {
	for range 1 + p.random.IntN(2) {
		f := fate{end: p.ends[p.random.IntN(2)], granted: p.random.IntN(3) > 0, after: p.upTo(3 * time.Second), up: p.upTo(time.Second)}
		if f.granted {
			f.after /= 2
		}
		list = append(list, f)
	}
	return list
}

// matched waits until the codes have matched, or nobody waits for that any more.
func (h *handover) matched() {
	h.p.until("the codes match, or not", func() bool {
		select {
		case <-h.fetching.done:
			return true
		default:
			return strings.Contains(h.fetching.log.String(), `"granted"`)
		}
	})
}

func (p *pair) upTo(limit time.Duration) time.Duration {
	return time.Duration(p.random.Int64N(int64(limit)))
}

// tally is how the runs of a test went.
type tally struct{ runs, kills, rearmed, unlocked atomic.Int64 }

// hand runs one handover through its fates to its end.
func (p *pair) hand(n int, from, to *terminal, ids []string, move bool, all *tally) {
	p.t.Helper()
	h := &handover{p: p, from: from, to: to, ids: ids, move: move, before: p.holds(to)}
	what := "copy"
	if move {
		what = "move"
	}
	p.note("run %d: %s of %v from %s to %s", n, what, ids, from.name, to.name)
	h.start(all)
	for _, f := range p.fates() {
		if f.granted {
			h.matched()
		}
		<-time.After(f.after)
		if !f.end.alive() {
			continue
		}
		p.kill(f.end)
		all.kills.Add(1)
		<-time.After(f.up)
		p.revive(f.end)
		h.neverTwo()
	}
	for try := 0; !h.settle(); try++ {
		if try == 5 {
			p.fatal("run %d: no code works any more", n)
		}
		p.cut++
		all.rearmed.Add(1)
		p.note("not delivered: a new code")
		h.start(all)
	}
	h.judge()
	all.runs.Add(1)
}

// start makes a code at one end and types it at the other.
func (h *handover) start(all *tally) {
	h.p.t.Helper()
	h.clear()
	args := []string{"keycopy", "offer", "--json"}
	if h.move {
		args = append(args, "--move")
	}
	for _, id := range h.ids {
		args = append(args, "--credential", id)
	}
	h.unlocked(all)
	h.offering = h.begin(h.from, "", args...)
	h.p.until(h.from.name+" shows a code", func() bool {
		h.code = codePattern.FindString(h.offering.log.String())
		select {
		case <-h.offering.done:
			if h.code == "" {
				h.p.fatal("%s: offer: %s", h.from.name, h.offering.log)
			}
		default:
		}
		return h.code != ""
	})
	h.fetching = h.begin(h.to, h.code+"\n", "keycopy", "fetch", h.from.copy, "--json")
}

// begin starts a verb of an end's agent.
func (h *handover) begin(e *terminal, stdin string, args ...string) *daemon {
	h.p.t.Helper()
	d := &daemon{m: e.machine, log: new(lockedBuffer), done: make(chan struct{})}
	d.cmd = e.command("kagimori", append([]string{"--socket", e.socket("kagimori")}, args...)...)
	d.cmd.Stdin, d.cmd.Stdout, d.cmd.Stderr = strings.NewReader(stdin), d.log, d.log
	if err := d.cmd.Start(); err != nil {
		h.p.fatal("%v", err)
	}
	go func() { d.cmd.Wait(); close(d.done) }()
	return d
}

// clear ends what is left of the code before.
func (h *handover) clear() {
	for _, d := range []*daemon{h.fetching, h.offering} {
		if d == nil {
			continue
		}
		d.cmd.Process.Kill()
		<-d.done
	}
	h.p.until("the old code is gone", func() bool {
		return h.from.ask("", "kagimori", "keycopy", "disarm").code == 0
	})
}

// unlocked ends a lock on codes as an administrator does. Whoever is cut off
// between a guess and its verdict has guessed wrong, as far as he can prove; so
// nine such runs lock an end, and no fewer.
func (h *handover) unlocked(all *tally) {
	for _, e := range h.p.ends {
		var s standing
		h.p.until(e.name+" says how it stands", func() (ok bool) { s, ok = e.stands(); return ok })
		if s.Locked+s.LockedFetch == 0 {
			continue
		}
		if h.p.cut < keycopy.AttemptsPerWindow {
			h.p.fatal("%s is locked after %d runs that were cut off", e.name, h.p.cut)
		}
		h.p.note("%s is locked", e.name)
		all.unlocked.Add(1)
		h.p.cut = 0
		e.verb("", "kagimori", "keycopy", "unlock")
	}
}

// settle waits until the new end has nothing open, and if it has the keys, until
// the old one has nothing open either. An offer of which the new end knows nothing
// stays on record at the old one: a new code replaces it.
func (h *handover) settle() (delivered bool) {
	h.p.t.Helper()
	h.p.until("the fetch ends", func() bool {
		select {
		case <-h.fetching.done:
			return true
		default:
			return false
		}
	})
	said := h.fetching.log.String()
	h.p.note("fetch: exit %d: %s", h.fetching.cmd.ProcessState.ExitCode(), lastLine(said))
	if code := h.fetching.cmd.ProcessState.ExitCode(); code != 0 && code != -1 && !strings.Contains(said, `"next"`) {
		h.p.t.Errorf("%s: exit %d without a next step: %s", h.to.name, code, said)
	}
	h.p.until(h.to.name+" has nothing open", func() bool { h.neverTwo(); return h.p.done(h.to) })
	if delivered = h.delivered(); delivered {
		h.p.until(h.from.name+" has nothing open", func() bool { h.neverTwo(); return h.p.done(h.from) })
	}
	return delivered
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-2):], " | ")
}

// delivered tells whether the keys are where they were to go.
func (h *handover) delivered() bool {
	held := h.p.holds(h.to)
	n := 0
	for _, id := range h.ids {
		if held[id].Usable {
			n++
		}
	}
	if n != 0 && n != len(h.ids) {
		h.p.fatal("%s has %d of %d keys: %v", h.to.name, n, len(h.ids), held)
	}
	return n > 0
}

// neverTwo holds a move to its promise. The Source is asked twice: what it gave
// up it does not use again, so a key that it uses before and after the Target is
// asked was in use twice.
func (h *handover) neverTwo() {
	if !h.move {
		return
	}
	first, ok1 := h.from.keys()
	there, ok2 := h.to.keys()
	again, ok3 := h.from.keys()
	if !ok1 || !ok2 || !ok3 {
		return
	}
	for _, id := range h.ids {
		if first[id].Usable && there[id].Usable && again[id].Usable {
			h.p.fatal("both ends use %s", id)
		}
	}
}

// judge compares what both ends hold with what they should.
func (h *handover) judge() {
	h.p.t.Helper()
	h.neverTwo()
	here, there := h.p.holds(h.from), h.p.holds(h.to)
	for id := range h.before {
		if !there[id].Usable && h.before[id].Usable {
			h.p.t.Errorf("%s lost %s", h.to.name, id)
		}
	}
	if want := len(h.before); len(there) != want+h.fresh() {
		h.p.t.Errorf("%s holds %d keys, want %d and %d new ones: %v", h.to.name, len(there), want, h.fresh(), there)
	}
	for _, id := range h.ids {
		if _, still := here[id]; !there[id].Usable || still == h.move || still && !here[id].Usable {
			h.p.t.Errorf("%s: %+v here, %+v there", id, here[id], there[id])
		}
	}
}

// fresh is how many of the keys there did not hold before.
func (h *handover) fresh() (n int) {
	for _, id := range h.ids {
		if _, had := h.before[id]; !had {
			n++
		}
	}
	return n
}

// A lot is what a pair does in a test.
type lot struct {
	*pair
	ids  []string
	move bool
	runs int
}

// work does the runs of a lot. A copy takes the next key; what moves goes to and fro.
func (l *lot) work(all *tally) {
	for n := range l.runs {
		if l.move {
			l.hand(n, l.ends[n%2], l.ends[1-n%2], l.ids, true, all)
		} else {
			l.hand(n, l.ends[0], l.ends[1], l.ids[n:n+1], false, all)
		}
	}
}

// A deal is a key copy on record.
type deal struct {
	Phase, Text  string
	Open, Forced bool
}

// end looks at what is left: the keys, the service's opinion of them, and the server's.
func (l *lot) end(d *deployment) {
	l.t.Helper()
	holders := l.ends[:]
	if l.move {
		holder := l.runs % 2
		holders = l.ends[holder : holder+1]
		if l.exactly(l.ends[1-holder], nil); strings.HasPrefix(l.ends[1-holder].curl("/a"), "map tile") {
			l.t.Errorf("%s still reaches the service", l.ends[1-holder].name)
		}
	}
	for i, e := range l.ends {
		var list struct{ Copies []deal }
		e.query(&list, "kagimori", "keycopy", "list")
		for _, d := range list.Copies {
			if d.Open || d.Phase == "reclaimed" || d.Forced {
				l.t.Errorf("%s: a key copy is %s in the end: %s", e.name, d.Phase, d.Text)
			}
			if d.Phase == "unreceipted" && l.move {
				l.t.Errorf("%s: a move is %s: %s", e.name, d.Phase, d.Text)
			}
		}
		if len(list.Copies) == 0 && l.runs > i {
			l.t.Errorf("%s has no key copy on record", e.name)
		}
	}
	var names []string
	for _, e := range holders {
		names = append(names, e.name)
		l.exactly(e, l.ids)
		l.until(e.name+" reaches the service", func() bool { return strings.HasPrefix(e.curl("/a"), "map tile /a for "+l.ends[0].name) })
	}
	slices.Sort(names)
	for _, id := range l.ids {
		l.until("the server knows who holds "+id, func() bool { return slices.Equal(slices.Sorted(slices.Values(d.holders(id))), names) })
	}
}

// killedCopies runs so many handovers, spread over pairs: every other pair moves
// its keys.
func killedCopies(t *testing.T, pairs, runs int) {
	n := newNetwork(t)
	d := newDeployment(t, n)
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("KAGIMORI_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("KAGIMORI_SEED=%d; the line takes %v each way and loses %.0f %% of the packets", seed, lineDelay, 100*lineLoss)
	var all tally
	var lots []*lot
	for i := range pairs {
		l := &lot{runs: (runs + pairs - 1 - i) / pairs, move: i%2 == 1}
		keys := l.runs
		if l.move {
			keys = 2
		}
		l.pair, l.ids = d.newPair(fmt.Sprintf("p%d", i), keys, lineDelay, lineLoss, seed+uint64(i))
		lots = append(lots, l)
	}
	began := time.Now()
	var wg sync.WaitGroup
	for _, l := range lots {
		wg.Go(func() { // not a parallel test: what runs here waits for the line, not for a processor
			l.work(&all)
			l.end(d)
		})
	}
	wg.Wait()
	var carried, lost int64
	for _, l := range lots {
		carried, lost = carried+l.line.carried.Load(), lost+l.line.lost.Load()
	}
	t.Logf("%d runs, %d kills, %d new codes, %d locks ended; %d packets carried, %d lost; %v", all.runs.Load(), all.kills.Load(), all.rearmed.Load(), all.unlocked.Load(),
		carried, lost, time.Since(began).Round(time.Second))
}

// req: C5, C9
func TestKilledCopies(t *testing.T) { killedCopies(t, 5, 20) }

// The figure of the issue.
func TestSoakKilledCopies(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes half an hour: make soak")
	}
	killedCopies(t, 10, 500)
}
