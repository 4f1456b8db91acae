package keycopy

import (
	"bytes"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// Each input changes what is derived: no key of one run is of use in another.
func TestScheduleBindsEverything(t *testing.T) {
	ch, _ := newChannels()
	base := channelID(transport.KeycopyPAKE, transport.KeycopyCPace21, &ch)
	noTarget := ch
	noTarget.TargetKey = nil
	other := ch
	other.SourceKey = []byte("another")
	exporter := ch
	exporter.Exporter[31] ^= 1
	swapped := ch
	swapped.SourceKey, swapped.TargetKey = ch.TargetKey, ch.SourceKey
	for name, ci := range map[string][]byte{
		"mode":     channelID(transport.KeycopyKEK, transport.KeycopyCPace21, &ch),
		"suite":    channelID(transport.KeycopyPAKE, 2, &ch),
		"target":   channelID(transport.KeycopyPAKE, transport.KeycopyCPace21, &noTarget),
		"source":   channelID(transport.KeycopyPAKE, transport.KeycopyCPace21, &other),
		"exporter": channelID(transport.KeycopyPAKE, transport.KeycopyCPace21, &exporter),
		"roles":    channelID(transport.KeycopyPAKE, transport.KeycopyCPace21, &swapped),
	} {
		if bytes.Equal(ci, base) {
			t.Errorf("%s does not matter", name)
		}
	}
	keys := func(mode transport.KeycopyMode, e byte, isk, mix, hello, ack string) string {
		c := ch
		c.Exporter[63] ^= e
		k, err := newRunKeys(mode, &c, bytes.Repeat([]byte(isk), 64), &fleetKeys{mix: bytes.Repeat([]byte(mix), 32)}, []byte(hello), []byte(ack))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, key := range [][]byte{k.confirmTarget, k.confirmSource, k.item, k.receipt, k.commit, k.activated, k.close, k.resume} {
			seen[string(key)] = true
		}
		if len(seen) != 8 {
			t.Error("two keys are the same")
		}
		return string(k.item)
	}
	want := keys("pake", 0, "i", "m", "hello", "ack")
	for name, got := range map[string]string{"mode": keys("direct", 0, "i", "m", "hello", "ack"), "exporter": keys("pake", 1, "i", "m", "hello", "ack"),
		"isk": keys("pake", 0, "j", "m", "hello", "ack"), "security code": keys("pake", 0, "i", "n", "hello", "ack"),
		"hello": keys("pake", 0, "i", "m", "hellp", "ack"), "ack": keys("pake", 0, "i", "m", "hello", "acl")} {
		if got == want {
			t.Errorf("%s does not matter", name)
		}
	}
}

// What a run held is gone when it ends, however it ends.
func TestRunsWipeTheirKeys(t *testing.T) {
	for _, change := range []alter{asSent, func(h hop) transport.KeycopyFrame {
		if h.frame.Type == transport.KeycopyTypeItem {
			h.frame.Body[len(h.frame.Body)-1] ^= 1
		}
		return h.frame
	}} {
		r := newRig(t, 2)
		sc, tc := newChannels()
		s := r.source.newRun(sc)
		g, err := r.target.newRun(t.Context(), tc)
		if err != nil {
			t.Fatal(err)
		}
		sourceErr, _ := pumpRuns(t.Context(), s, g, change)
		var held [][]byte
		for _, k := range []*fleetKeys{s.fleet, g.fleet} {
			held = append(held, k.admit, k.prs, k.mix)
		}
		for _, k := range []*runKeys{s.keys, g.keys} {
			held = append(held, k.confirmTarget, k.confirmSource, k.item, k.receipt, k.commit, k.activated, k.close, k.resume)
		}
		for _, rec := range g.records {
			held = append(held, rec.Secret.Bytes)
		}
		s.end(sourceErr)
		g.end()
		for i, b := range held {
			if !bytes.Equal(b, make([]byte, len(b))) {
				t.Errorf("buffer %d is not wiped", i)
			}
		}
		if s.offer.records != nil || g.pace.y != nil {
			t.Error("records or scalar are left")
		}
	}
}
