package keycopy

// All shapes that a connection has: each mode, copying and moving, and going on
// after a break. What is done to messages in flight is done to all of them.

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

type flow struct {
	mode          transport.KeycopyMode
	move, resumed bool
}

func (f flow) String() string {
	return fmt.Sprintf("%s, move %v, resumed %v", f.mode, f.move, f.resumed)
}

func flows() (list []flow) {
	for _, mode := range transport.KeycopyModes() {
		list = append(list, flow{mode, false, false}, flow{mode, true, false}, flow{mode, true, true})
	}
	return list
}

// A flight is a connection about to be made: both ends have identities.
type flight struct {
	flow
	*rig
	channels       func() (source, target transport.KeycopyChannel)
	source, target int // attempts counted before
}

func (f flow) ready(t testing.TB, digits string) *flight {
	t.Helper()
	r, channels := modeRig(t, f.mode, 0)
	r.records = smallRecords()
	if f.move {
		r.records[1].Transfer = transport.TransferMove
	}
	r.arm(digits, digits)
	a := &flight{flow: f, rig: r, channels: channels}
	if f.resumed {
		sc, tc := channels()
		r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			if h.frame.Type == transport.KeycopyTypeItem {
				return transport.KeycopyFrame{}
			}
			return h.frame
		})
		if p, q := r.sourceLedger.last().Phase, r.targetLedger.last().Phase; p != transport.KeycopyOffered || q != transport.KeycopyStarted {
			t.Fatalf("%s: %s and %s before it is resumed", f, p, q)
		}
	}
	a.source, a.target = r.sourceLedger.counted, r.targetLedger.counted
	return a
}

// run makes the connection.
func (a *flight) run(t testing.TB, change alter) (sourceErr, targetErr error) {
	t.Helper()
	sc, tc := a.channels()
	if a.resumed {
		return a.again(t, sc, tc, change)
	}
	return a.pump(t.Context(), sc, tc, change)
}

// good is the flow as it should be.
func (f flow) good(t testing.TB, digits string) (all []hop) {
	t.Helper()
	a := f.ready(t, digits)
	sourceErr, targetErr := a.run(t, func(h hop) transport.KeycopyFrame {
		all = append(all, hop{h.toSource, h.n, transport.KeycopyFrame{Type: h.frame.Type, Body: slices.Clone(h.frame.Body)}})
		return h.frame
	})
	if sourceErr != nil || targetErr != nil || len(a.targetLedger.received) != 2 {
		t.Fatalf("%s: %v, %v", f, sourceErr, targetErr)
	}
	return all
}

// faults are those by which the receiver of a spoiled frame may refuse it.
func faults(at transport.KeycopyType) []transport.KeycopyFault {
	switch at {
	case transport.KeycopyTypeHello:
		return []transport.KeycopyFault{transport.KeycopyProtocol, transport.KeycopyVersionRefused, transport.KeycopyModeRefused, transport.KeycopyCodeUnknown, transport.KeycopyAuthFailed}
	case transport.KeycopyTypeResume:
		return []transport.KeycopyFault{transport.KeycopyProtocol, transport.KeycopyTxnUnknown}
	}
	return []transport.KeycopyFault{transport.KeycopyProtocol, transport.KeycopyAuthFailed}
}

// judge checks a run in which the frame of type at was spoiled: its receiver
// refused it for the right reason, and neither end did what that frame, in good
// order, would have made it do.
func (a *flight) judge(t testing.TB, what string, at transport.KeycopyType, toSource bool, sourceErr, targetErr error) {
	t.Helper()
	finder := targetErr
	if toSource {
		finder = sourceErr
	}
	if e, ok := finder.(*Error); !ok || e.Remote || !slices.Contains(faults(at), e.Fault) {
		t.Errorf("%s: %s: refused with %v", a.flow, what, finder)
		return
	}
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s: "+format, append([]any{a.flow, what}, args...)...)
	}
	s, g := a.sourceLedger, a.targetLedger
	counted := func(atSource, atTarget int) {
		t.Helper()
		if n, m := s.counted-a.source, g.counted-a.target; n > atSource || m > atTarget {
			bad("%d attempts counted at the Source, %d at the Target", n, m)
		}
	}
	phases := func(source, target transport.KeycopyPhase) {
		t.Helper()
		if p, q := s.last().Phase, g.last().Phase; p != source || q != target && q != transport.KeycopyDropped {
			bad("%s at the Source, %s at the Target", p, q)
		}
	}
	if at < transport.KeycopyTypeReceipt || at >= transport.KeycopyTypeResume {
		if len(g.received) != 0 || sourceErr == nil || targetErr == nil {
			bad("%d installed, %v, %v", len(g.received), sourceErr, targetErr)
		}
	}
	switch at {
	case transport.KeycopyTypeHello:
		counted(0, map[bool]int{true: 1}[a.mode.SealsCode()])
		if state, _ := a.rig.source.State(); state != Armed || len(s.deals) != 0 {
			bad("the Source is %s", state)
		}
	case transport.KeycopyTypeHelloAck:
		counted(0, 0)
	case transport.KeycopyTypeProof:
		counted(1, 1)
		if len(s.deals) != 0 {
			bad("something was offered")
		}
	case transport.KeycopyTypeGrant:
		if counted(1, 1); len(g.deals) != 0 || s.failures() != 0 {
			bad("the Target has begun, or the Source counts a failure")
		}
	case transport.KeycopyTypeItem, transport.KeycopyTypeResume, transport.KeycopyTypeResumed:
		phases(transport.KeycopyOffered, transport.KeycopyStarted)
	case transport.KeycopyTypeReceipt:
		phases(transport.KeycopyOffered, transport.KeycopyStaged)
	case transport.KeycopyTypeCommit:
		phases(transport.KeycopyCommitted, transport.KeycopyStaged)
	case transport.KeycopyTypeActivated:
		phases(transport.KeycopyCommitted, transport.KeycopyActive)
	case transport.KeycopyTypeClose:
		phases(transport.KeycopyDone, map[bool]transport.KeycopyPhase{true: transport.KeycopyActive, false: transport.KeycopyStaged}[a.move])
	}
	if s.uses("cr-key") && g.uses("cr-key") && a.move {
		bad("two terminals use what moved")
	}
}

// spoil sends another frame in the place of frame n.
func (f flow) spoil(t testing.TB, what string, was hop, frame transport.KeycopyFrame) {
	t.Helper()
	a := f.ready(t, "12345678")
	sourceErr, targetErr := a.run(t, func(h hop) transport.KeycopyFrame {
		if h.n == was.n {
			return frame
		}
		return h.frame
	})
	a.judge(t, what, was.frame.Type, was.toSource, sourceErr, targetErr)
}

// One bit of a byte of each field of each message is flipped in flight, its type
// included. req: C3, C4, C6
func TestEveryFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	flipBits(t, false)
}

func TestSoakEveryFlippedBitIsFound(t *testing.T) {
	soak(t)
	flipBits(t, true)
}

func flipBits(t *testing.T, all bool) {
	const step = 9 // every field of a MAC, key or nonce is hit, a shorter one by its neighbours in another flow
	flips := 0
	for nth, f := range flows() {
		for _, was := range f.good(t, "12345678") {
			flip := func(i int, bit byte) {
				flips++
				a := f.ready(t, "12345678")
				sourceErr, targetErr := a.run(t, func(h hop) transport.KeycopyFrame {
					if h.n != was.n {
						return h.frame
					}
					spoiled := transport.KeycopyFrame{Type: h.frame.Type, Body: slices.Clone(h.frame.Body)}
					if i < 0 {
						spoiled.Type ^= 1 << 4
					} else {
						spoiled.Body[min(i, len(spoiled.Body)-1)] ^= bit // a signature is not always as long
					}
					return spoiled
				})
				a.judge(t, fmt.Sprintf("%s, byte %d", was.frame.Type, i), was.frame.Type, was.toSource, sourceErr, targetErr)
			}
			flip(-1, 0)
			for i := range was.frame.Body {
				for bit := range 8 {
					if all || i%step == (was.n+nth)%step && bit == i/step%8 {
						flip(i, 1<<bit)
					}
				}
			}
		}
	}
	if flips < 1000 {
		t.Errorf("only %d flips", flips)
	}
}

// Each message of a run is replayed into another: with the same codes, with
// another operator code, in another mode, resumed or not. req: C3
func TestReplayIsRefused(t *testing.T) {
	t.Parallel()
	replayFrames(t, false)
}

func TestSoakReplayIsRefused(t *testing.T) {
	soak(t)
	replayFrames(t, true)
}

// replayFrames leaves out most of what is replayed into another flow, unless all is true.
func replayFrames(t *testing.T, all bool) {
	old := map[string][]hop{}
	for _, f := range flows() {
		old[f.String()] = f.good(t, "12345678")
		old[f.String()+", another code"] = f.good(t, "87654321")
	}
	replays := 0
	for _, f := range flows() {
		for _, now := range old[f.String()] {
			for name, hops := range old {
				if !all && strings.Count(name, ",") > 2 && name != f.String()+", another code" {
					continue
				}
				for _, was := range hops {
					if was.frame.Type == now.frame.Type && was.toSource == now.toSource {
						f.spoil(t, fmt.Sprintf("%s of a run in %s", was.frame.Type, name), now, was.frame)
						replays++
					}
				}
			}
		}
	}
	if replays < 500 {
		t.Errorf("only %d replays", replays)
	}
}

// A message of the same run, its own or its peer's, does not serve as another,
// under its type or under the other's. The steps of a move look alike.
func TestReflectionInEveryFlow(t *testing.T) {
	t.Parallel()
	for _, f := range flows() {
		good := f.good(t, "12345678")
		for _, now := range good {
			for _, was := range good {
				if was.n == now.n || was.frame.Type == now.frame.Type && was.n > now.n {
					continue
				}
				var seen transport.KeycopyFrame
				a := f.ready(t, "12345678")
				sourceErr, targetErr := a.run(t, func(h hop) transport.KeycopyFrame {
					if h.n == was.n {
						seen = h.frame
					}
					if h.n != now.n {
						return h.frame
					}
					if seen.Type == 0 {
						seen = was.frame // of another run, as this one has not got there
					}
					return transport.KeycopyFrame{Type: h.frame.Type, Body: seen.Body}
				})
				a.judge(t, fmt.Sprintf("%s as %s", was.frame.Type, now.frame.Type), now.frame.Type, now.toSource, sourceErr, targetErr)
			}
		}
	}
}
