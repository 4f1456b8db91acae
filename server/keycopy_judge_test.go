package server

import (
	"bufio"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Whatever pair of states the model of the transaction reaches, in a run of two
// honest ends, the server finds no contradiction in; nor in any earlier state of
// the one beside a later one of the other, since reports are old.
func TestWhatTheModelReachesIsNoContradiction(t *testing.T) {
	phases := map[string]transport.KeycopyPhase{
		"offered": transport.KeycopyOffered, "committed": transport.KeycopyCommitted, "done": transport.KeycopyDone, "reclaimed": transport.KeycopyReclaimed,
		"started": transport.KeycopyStarted, "staged": transport.KeycopyStaged, "active": transport.KeycopyActive, "closed": transport.KeycopyClosed,
		"kept": transport.KeycopyUnreceipted,
	}
	for _, name := range []string{"copy", "move"} {
		f, err := os.Open("../docs/models/states-" + name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		pairs := 0
		for in := bufio.NewScanner(f); in.Scan(); {
			x := strings.Fields(in.Text())
			if len(x) != 5 || x[0] == "#" || x[4] != "same" {
				continue
			}
			source, target := phases[x[0]], phases[x[2]]
			if source == 0 || target == 0 {
				t.Fatalf("state %q is unknown here", in.Text())
			}
			pairs++
			k, n := pairOf(source, target, name == "move")
			if status, problems := judge(k, n, false); status == store.KeycopyContradiction {
				t.Errorf("%s: %s: %v", name, in.Text(), problems)
			}
		}
		if pairs < 4 {
			t.Errorf("%s: %d pairs read", name, pairs)
		}
	}
}

// pairOf is a key copy of one item whose ends are in two phases.
func pairOf(source, target transport.KeycopyPhase, moves bool) (store.Keycopy, store.KeycopyTally) {
	k := store.Keycopy{Source: store.KeycopyEnd{Phase: source, Total: 1, Mode: "pake"}, Target: store.KeycopyEnd{Phase: target, Total: 1, Mode: "pake"}}
	n := store.KeycopyTally{Items: 1, Source: 1, Target: 1, Said: [2]int{1, 1}}
	if moves {
		n.Moved = 1
	}
	return k, n
}

func TestEveryPairOfPhasesIsJudged(t *testing.T) {
	const open, done = "open", "consistent"
	// Rows: source; columns: started, staged, active, closed, unreceipted, dropped.
	tables := map[bool]map[transport.KeycopyPhase][6]string{
		true: {
			transport.KeycopyOffered:   {open, open, open, open, open, open},
			transport.KeycopyCommitted: {open, open, open, open, open, open},
			transport.KeycopyDone:      {open, open, done, done, problemLost, problemLost},
			transport.KeycopyReclaimed: {open, open, problemBoth, problemBoth, done, done},
			transport.KeycopyAbandoned: {open, open, problemBoth, problemBoth, done, done},
		},
		false: {
			transport.KeycopyOffered:   {open, open, open, open, open, open},
			transport.KeycopyCommitted: {open, open, open, open, open, open},
			transport.KeycopyDone:      {open, done, done, done, done, problemPhases},
			transport.KeycopyReclaimed: {open, open, problemPhases, problemPhases, done, done},
			transport.KeycopyAbandoned: {open, open, problemPhases, problemPhases, done, done},
		},
	}
	for moves, table := range tables {
		for source, row := range table {
			for n := range row {
				target := transport.KeycopyStarted + transport.KeycopyPhase(n)
				k, tally := pairOf(source, target, moves)
				status, problems := judge(k, tally, false)
				got := string(status)
				if status == store.KeycopyContradiction {
					got = strings.Join(problems, " ")
				}
				if got != row[n] {
					t.Errorf("moves %v, %s and %s: %s, want %s", moves, source, target, got, row[n])
				}
			}
		}
	}
}

// A Target that ended without having heard from its Source keeps what it used by
// then: that is no lost key, and a second one if the Source has it again.
func TestEndedTargetThatKeepsWhatMoved(t *testing.T) {
	for source, want := range map[transport.KeycopyPhase]string{
		transport.KeycopyOffered: "", transport.KeycopyCommitted: "", transport.KeycopyDone: "",
		transport.KeycopyReclaimed: problemBoth, transport.KeycopyAbandoned: problemBoth,
	} {
		k, n := pairOf(source, transport.KeycopyUnreceipted, true)
		n.Kept = 1
		if _, problems := judge(k, n, false); strings.Join(problems, " ") != want {
			t.Errorf("%s: %v, want %q", source, problems, want)
		}
	}
	k, n := pairOf(transport.KeycopyDone, transport.KeycopyUnreceipted, true)
	n.Kept = 1
	if status, _ := judge(k, n, false); status != store.KeycopyConsistent {
		t.Errorf("both have done what they could: %s", status)
	}
}

func TestEveryContradictionIsFoundAndSaysWhatToDo(t *testing.T) {
	fine := func() (store.Keycopy, store.KeycopyTally) {
		return pairOf(transport.KeycopyDone, transport.KeycopyClosed, true)
	}
	if k, n := fine(); func() bool { s, _ := judge(k, n, false); return s != store.KeycopyConsistent }() {
		t.Fatal("the two that fit do not")
	}
	cases := map[string]func(*store.Keycopy, *store.KeycopyTally) (others bool){
		problemBoth: func(k *store.Keycopy, _ *store.KeycopyTally) bool {
			k.Source.Phase = transport.KeycopyReclaimed
			return false
		},
		problemLost: func(k *store.Keycopy, _ *store.KeycopyTally) bool {
			k.Target.Phase = transport.KeycopyDropped
			return false
		},
		problemPhases: func(k *store.Keycopy, n *store.KeycopyTally) bool {
			k.Target.Phase, n.Moved = transport.KeycopyDropped, 0
			return false
		},
		problemTaken:   func(_ *store.Keycopy, n *store.KeycopyTally) bool { n.OtherTaken = 1; return false },
		problemItems:   func(_ *store.Keycopy, n *store.KeycopyTally) bool { n.OtherTransfer = 1; return false },
		problemMode:    func(k *store.Keycopy, _ *store.KeycopyTally) bool { k.Target.Mode = "kek"; return false },
		problemReceipt: func(k *store.Keycopy, _ *store.KeycopyTally) bool { k.Proof = store.ProofBad; return false },
		problemChanged: func(k *store.Keycopy, _ *store.KeycopyTally) bool { k.Target.Odd = "dropped"; return false },
		problemRevived: func(k *store.Keycopy, _ *store.KeycopyTally) bool { k.Source.Odd = oddRevived; return false },
		problemEnds:    func(*store.Keycopy, *store.KeycopyTally) bool { return true },
		problemSettle: func(k *store.Keycopy, _ *store.KeycopyTally) bool {
			k.Settled, k.SettledAt, k.Source.Phase = transport.KeycopySource, time.Unix(1, 0), transport.KeycopyCommitted
			return false
		},
	}
	texts := map[string]bool{}
	for code, change := range cases {
		k, n := fine()
		others := change(&k, &n)
		if status, problems := judge(k, n, others); status != store.KeycopyContradiction || !slices.Equal(problems, []string{code}) {
			t.Errorf("%s: %s %v", code, status, problems)
		}
		text, next := problemText(k, code), problemNext(k, code)
		if text == code || next == "" || texts[text] {
			t.Errorf("%s: %q, next %q", code, text, next)
		}
		texts[text] = true
	}
	if len(cases) != 11 {
		t.Errorf("%d contradictions", len(cases))
	}
}
