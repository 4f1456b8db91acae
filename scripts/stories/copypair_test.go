package stories

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// A pair is two terminals with a chip each that hand keys to each other over a
// bad line. Either loses its agent to kill -9 at any moment, and gets it back.
type pair struct {
	t      *testing.T
	name   string
	seed   uint64
	random *rand.Rand
	line   *cable
	ends   [2]*terminal // the first one is issued the keys
	cut    int          // runs that ended without the keys since the last lock
	logs   []string     // what has happened, for whoever has to find out why
	began  time.Time
}

// newPair makes both terminals, lays the line and gives the first one its keys.
func (d *deployment) newPair(name string, keys int, delay time.Duration, loss float64, seed uint64) (p *pair, ids []string) {
	d.t.Helper()
	p = &pair{t: d.t, name: name, seed: seed, random: rand.New(rand.NewPCG(seed, 1)), began: time.Now()}
	for i, suffix := range []string{"-old", "-new"} {
		p.ends[i] = d.terminal(name+suffix, chip(d.t))
		p.ends[i].named()
	}
	for n := range keys {
		service := d.service(n)
		out := d.server.verb("", "kagimori-server", "credential", "issue", p.ends[0].name, "--service", service, "--wait", "--json")
		ids = append(ids, credentialPattern.FindString(out))
	}
	d.t.Cleanup(p.tell)
	d.t.Cleanup(func() {
		for _, e := range p.ends {
			e.daemon.stop()
		}
	})
	p.line = d.net.lay(p.ends[0].machine, p.ends[1].machine, delay, loss, seed)
	return p, ids
}

var credentialPattern = regexp.MustCompile(`cr-[a-z0-9]+`)

// service names the nth service. A terminal has one key for each. Only the
// first has a gate that runs.
func (d *deployment) service(n int) string {
	d.t.Helper()
	if n == 0 {
		return "maps"
	}
	name := fmt.Sprintf("s%d", n)
	if _, made := d.bundles[name]; !made {
		d.bundle(name, "gate", "add", name, "--dns", name+".test", "--endpoint", d.door)
	}
	return name
}

// fatal ends the goroutine of this pair, and lets the others go on.
func (p *pair) fatal(format string, args ...any) {
	p.t.Helper()
	p.t.Errorf(p.name+": "+format, args...)
	runtime.Goexit()
}

// tell shows what happened, once somebody has to find out why.
func (p *pair) tell() {
	if !p.t.Failed() {
		return
	}
	p.t.Logf("pair %s, seed %d; what happened:\n%s", p.name, p.seed, strings.Join(p.logs, "\n"))
	for _, e := range p.ends {
		p.t.Logf("--- log of the last agent on %s\n%s", e.name, e.daemon.log)
	}
}

func (p *pair) note(format string, args ...any) {
	p.logs = append(p.logs, fmt.Sprintf("%9.3fs ", time.Since(p.began).Seconds())+fmt.Sprintf(format, args...))
}

// until waits longer than a machine does: a line that loses packets makes TCP wait.
func (p *pair) until(what string, ok func() bool) {
	p.t.Helper()
	deadline := time.Now().Add(linePatience)
	for !ok() {
		if time.Now().After(deadline) {
			p.fatal("waited %v: %s", linePatience, what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// linePatience bounds every wait for what has to cross the line.
const linePatience = 4 * time.Minute

// kill ends the agent of an end, as a power cut does.
func (p *pair) kill(e *terminal) {
	p.note("kill -9 %s", e.name)
	e.daemon.kill()
}

// revive starts it again and waits until it answers.
func (p *pair) revive(e *terminal) {
	p.t.Helper()
	e.daemon = e.launch("kagimori", "run", "--config", e.config)
	p.until(e.name+" answers", func() bool {
		select {
		case <-e.daemon.done:
			p.fatal("%s: the agent ended at once:\n%s", e.name, e.daemon.log)
		default:
		}
		c, err := net.Dial("unix", e.socket("kagimori"))
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	p.note("%s is back", e.name)
}

// alive tells whether the agent of an end runs.
func (e *terminal) alive() bool {
	select {
	case <-e.daemon.done:
		return false
	default:
		return true
	}
}

// A key is what a terminal says of a credential.
type key struct {
	ID     string `json:"id"`
	State  string `json:"state"`
	Usable bool   `json:"usable"`
	Origin string `json:"origin"`
}

// keys lists what an end holds, by id; false if its agent does not answer now.
func (e *terminal) keys() (map[string]key, bool) {
	e.t.Helper()
	r := e.ask("", "kagimori", "credential", "list", "--json")
	if r.code != 0 {
		return nil, false
	}
	var list struct{ Credentials []key }
	if err := json.Unmarshal([]byte(r.out), &list); err != nil {
		e.t.Fatalf("%s: %v in %s", e.name, err, r.out)
	}
	held := map[string]key{}
	for _, k := range list.Credentials {
		held[k.ID] = k
	}
	return held, true
}

// holds waits for an answer to keys.
func (p *pair) holds(e *terminal) (held map[string]key) {
	p.t.Helper()
	p.until(e.name+" lists its keys", func() (ok bool) { held, ok = e.keys(); return ok })
	return held
}

// standing is what an end says of its key copies.
type standing struct {
	Locked      int `json:"locked_seconds"`
	LockedFetch int `json:"fetch_locked_seconds"`
	Open        []struct{ Txn, Text string }
}

// stands asks an end; false if its agent does not answer now.
func (e *terminal) stands() (standing, bool) {
	var s struct{ Keycopy standing }
	r := e.ask("", "kagimori", "status", "--json")
	return s.Keycopy, r.code == 0 && json.Unmarshal([]byte(r.out), &s) == nil
}

// done tells whether an end has no transaction that goes on.
func (p *pair) done(e *terminal) bool {
	s, ok := e.stands()
	return ok && len(s.Open) == 0
}

// exactly wants an end to use these keys and no others.
func (p *pair) exactly(e *terminal, ids []string) {
	p.t.Helper()
	var got []string
	for id, k := range p.holds(e) {
		if k.Usable {
			got = append(got, id)
		}
	}
	slices.Sort(got)
	if want := slices.Sorted(slices.Values(ids)); !slices.Equal(got, want) {
		p.t.Errorf("%s uses %v, want %v", e.name, got, want)
	}
}
