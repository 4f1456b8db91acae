package keycopy

// The state machine under fire: a whole run of the simulator, resuming included,
// in which frames are changed on their way. Whatever is done to them nothing
// panics, nothing is installed that was not sent, and what must hold does; once
// it stops the run comes to its end.

import (
	"slices"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// The ways to hurt a frame.
const (
	hurtFlip = iota
	hurtType
	hurtCut
	hurtGrow
	hurtDrop
	hurtTwice
	hurtSwap   // with the one after it
	hurtSplice // one of another run, or of an earlier connection, in its place
	hurts
)

// A strike is one frame hurt: n counts the frames of the run.
type strike struct {
	n, how byte
	at     uint16
	with   byte
}

func parseStrikes(b []byte) (all []strike) {
	for ; len(b) >= 5 && len(all) < 6; b = b[5:] {
		all = append(all, strike{b[0], b[1] % hurts, uint16(b[2])<<8 | uint16(b[3]), b[4]})
	}
	return all
}

// mangler applies strikes. others are frames of another run.
func mangler(strikes []strike, others []transport.KeycopyFrame) func(*simConn, transport.KeycopyFrame) []transport.KeycopyFrame {
	n, seen := 0, slices.Clone(others)
	var kept *transport.KeycopyFrame // swapped with the next of its direction
	var from *simEnd
	return func(c *simConn, f transport.KeycopyFrame) []transport.KeycopyFrame {
		seen = append(seen, f)
		out := []transport.KeycopyFrame{f}
		for _, s := range strikes {
			if int(s.n) != n {
				continue
			}
			g := transport.KeycopyFrame{Type: f.Type, Body: slices.Clone(f.Body)}
			switch s.how {
			case hurtFlip:
				if len(g.Body) > 0 {
					g.Body[int(s.at)%len(g.Body)] ^= s.with
				}
			case hurtType:
				g.Type ^= transport.KeycopyType(s.with)
			case hurtCut:
				g.Body = g.Body[:int(s.at)%(len(g.Body)+1)]
			case hurtGrow:
				g.Body = append(g.Body, s.with)
			case hurtSplice:
				g = seen[int(s.at)%len(seen)]
			}
			switch s.how {
			case hurtDrop:
				out = nil
			case hurtTwice:
				out = append(out, f)
			case hurtSwap:
				kept, from, out = &f, c.end, nil
			default:
				out = []transport.KeycopyFrame{g}
			}
			break
		}
		n++
		if kept != nil && len(out) > 0 && from == c.end {
			out, kept = append(out, *kept), nil
		}
		return out
	}
}

// framesOf are the frames of a run of s.
func framesOf(s script) (all []transport.KeycopyFrame) {
	w := newWorld(s, mutant{})
	w.mangle = func(_ *simConn, f transport.KeycopyFrame) []transport.KeycopyFrame {
		all = append(all, f)
		return []transport.KeycopyFrame{f}
	}
	w.play()
	return all
}

// FuzzTransaction plays a script of which kind is the number in simScripts, with
// one power cut or drop, and up to six frames hurt.
func FuzzTransaction(f *testing.F) {
	scripts := simScripts()
	for kind := range scripts {
		f.Add(byte(kind), uint16(0), byte('L'), []byte{})
		for n := range byte(14) {
			f.Add(byte(kind), uint16(28+n), byte('L'), []byte{n, n % hurts, 0, 40, 1})
			f.Add(byte(kind), uint16(0), byte('L'), []byte{n, (n + 3) % hurts, 1, n, 0x80, n + 2, n % hurts, 0, 3, 7})
		}
	}
	others := framesOf(script{mode: transport.KeycopyPAKE, items: "mixed", seed: 99})
	f.Fuzz(func(t *testing.T, kind byte, at uint16, what byte, hurt []byte) {
		s := scripts[int(kind)%len(scripts)]
		kinds := []rune{cutSource, cutTarget, dropLink, dropArrives, dropHalf, abandon, expireCode}
		s.faults = []fault{{int(at), kinds[int(what)%len(kinds)], tearMiddle}}
		if at == 0 {
			s.faults = nil
		}
		w := newWorld(s, mutant{})
		w.mangle = mangler(parseStrikes(hurt), others)
		w.play()
		for _, v := range w.violations {
			t.Errorf("%s: %s (%s, %x)", v.property, v.detail, s, hurt)
		}
		for _, id := range w.items {
			if k := w.target.safe.keys[id]; len(k.Record) > 0 && !sameSecret(k.Record, w.before[id].Record) {
				t.Errorf("%s is installed and was not sent (%s, %x)", id, s, hurt)
			}
		}
		if len(w.target.safe.keys) > len(w.items) {
			t.Errorf("%d keys installed of %d", len(w.target.safe.keys), len(w.items))
		}
	})
}
