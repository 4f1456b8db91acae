package keycopy

// One run with seeded randomness, every intermediate value of which is kept in
// testdata/transcript.json: another implementation can be held to it. The test
// writes the schedule out a second time, from the protocol's formulas.

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/gtank/ristretto255"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/transport"
)

var update = flag.Bool("update", false, "write the golden files anew")

// seeded is the randomness of one end: ChaCha8 under 32 equal bytes.
func seeded(b byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte(bytes.Repeat([]byte{b}, 32))) }

type transcript []value

type value struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (tr *transcript) add(name string, b []byte) {
	*tr = append(*tr, value{name, hex.EncodeToString(b)})
}

func hash(parts ...[]byte) []byte {
	h := sha256.Sum256(bytes.Join(parts, nil))
	return h[:]
}

func mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(bytes.Join(parts, nil))
	return m.Sum(nil)
}

// less is the encoding of v.
func less(t *testing.T, v any) []byte {
	t.Helper()
	b, err := transport.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// seededRun is a run of one key whose randomness and channel are fixed.
func seededRun(t *testing.T) (ch transport.KeycopyChannel, frames []transport.KeycopyFrame) {
	t.Helper()
	r := newRig(t, 1)
	r.sourceConfig.Random, r.targetConfig.Random = seeded('S'), seeded('T')
	r.arm("12345678", "12345678")
	ch = transport.KeycopyChannel{Mode: transport.KeycopyPAKE, TargetKey: []byte("public key of the Target's certificate"), SourceKey: []byte("public key of the Source's certificate")}
	if _, err := seeded('E').Read(ch.Exporter[:]); err != nil {
		t.Fatal(err)
	}
	sourceErr, targetErr := r.pump(context.Background(), ch, ch, func(h hop) transport.KeycopyFrame {
		frames = append(frames, h.frame)
		return h.frame
	})
	if sourceErr != nil || targetErr != nil || len(frames) != 7 {
		t.Fatal(sourceErr, targetErr, len(frames))
	}
	return ch, frames
}

func TestTranscriptVectors(t *testing.T) {
	ch, frames := seededRun(t)
	var (
		hello   transport.KeycopyHello
		ack     transport.KeycopyHelloAck
		proof   transport.KeycopyProof
		grant   transport.KeycopyGrant
		item    transport.KeycopyItem
		receipt transport.KeycopyReceipt
		end     transport.KeycopyClose
	)
	for i, m := range []transport.KeycopyMessage{&hello, &ack, &proof, &grant, &item, &receipt, &end} {
		if err := transport.DecodeKeycopy(frames[i], m); err != nil {
			t.Fatal(err)
		}
	}
	var tr transcript
	check := func(name string, want, got []byte) {
		t.Helper()
		if tr.add(name, want); !bytes.Equal(want, got) {
			t.Errorf("%s: the run has %x, the formula gives %x", name, got, want)
		}
	}
	e := ch.Exporter[:]
	oc := append([]byte("12345678"), '0'+damm([]byte("12345678")))
	tr.add("security code", []byte(fleetKey))
	tr.add("operator code (ASCII)", oc)
	tr.add("SPKI_T", ch.TargetKey)
	tr.add("SPKI_S", ch.SourceKey)
	tr.add("E", e)

	scs := mac([]byte(fleetKey), []byte("keycopy/1 sc\x00pake"), e[:32])
	tr.add("SCS", scs)
	scp := func(l string) []byte {
		k, err := hkdf.Expand(sha256.New, scs, "keycopy/1 "+l, 32)
		if err != nil {
			t.Fatal(err)
		}
		tr.add("scp("+l+")", k)
		return k
	}
	admit, prsKey, mix := scp("admit"), scp("prs"), scp("mix")
	prs := lvCat([]byte("keycopy/1 prs"), oc, prsKey)
	tr.add("PRS", prs)
	ci := lvCat([]byte("keycopy/1"), []byte("pake"), []byte("CPACE-RISTR255-SHA512 draft-irtf-cfrg-cpace-21"), hash(ch.TargetKey), hash(ch.SourceKey), e[:32])
	tr.add("CI", ci)
	tr.add("sid", e[32:])

	scalar := func(name string, seed byte) *ristretto255.Scalar {
		var uniform [64]byte
		seeded(seed).Read(uniform[:])
		y, err := ristretto255.NewScalar().SetUniformBytes(uniform[:])
		if err != nil {
			t.Fatal(err)
		}
		tr.add(name, y.Bytes())
		return y
	}
	ya, yb := scalar("ya", 'T'), scalar("yb", 'S')
	g := cpaceGenerator(prs, ci, e[32:])
	tr.add("g", g.Bytes())
	check("Ya", ristretto255.NewIdentityElement().ScalarMult(ya, g).Bytes(), hello.Share[:])
	check("Yb", ristretto255.NewIdentityElement().ScalarMult(yb, g).Bytes(), ack.Share[:])
	check("admit_t", mac(admit, []byte("t"), hash(less(t, hello.KeycopyHelloBody))), hello.Admit[:])
	tr.add("HELLO", frames[0].Body)
	check("admit_s", mac(admit, []byte("s"), hash(frames[0].Body), hash(less(t, ack.KeycopyHelloAckBody))), ack.Admit[:])
	tr.add("HELLO_ACK", frames[1].Body)

	k, err := scalarMultVfy(ya, ack.Share[:])
	if err != nil {
		t.Fatal(err)
	}
	input := append(lvCat([]byte("CPaceRistretto255_ISK"), e[32:], k), lvCat(hello.Share[:], hash(frames[0].Body), ack.Share[:], hash(frames[1].Body))...)
	isk := sha512.Sum512(input)
	tr.add("ISK", isk[:])
	th := hash(frames[0].Body, frames[1].Body)
	tr.add("TH", th)
	prk, err := hkdf.Extract(sha512.New, bytes.Join([][]byte{e, isk[:], mix}, nil), th)
	if err != nil {
		t.Fatal(err)
	}
	tr.add("PRK", prk)
	key := func(l string) []byte {
		k, err := hkdf.Expand(sha512.New, prk, "keycopy/1 pake "+l, 32)
		if err != nil {
			t.Fatal(err)
		}
		tr.add("k("+l+")", k)
		return k
	}
	check("Ta", mac(key("confirm t"), th), proof.Tag[:])
	tr.add("PROOF", frames[2].Body)
	tr.add("manifest", grant.Manifest)
	check("Tb", mac(key("confirm s"), th, proof.Tag[:], hash(grant.Manifest)), grant.Tag[:])
	tr.add("GRANT", frames[3].Body)

	aead, err := chacha20poly1305.New(key("item"))
	if err != nil {
		t.Fatal(err)
	}
	record := less(t, &someRecords(1)[0])
	tr.add("record", record)
	ad := bytes.Join([][]byte{ack.Txn[:], hash(grant.Manifest), []byte("cr-0000"), {0, 0, 0, 0}}, nil)
	tr.add("item AAD", ad)
	check("item ct", aead.Seal(nil, make([]byte, 12), record, ad), item.Sealed)
	tr.add("ITEM", frames[4].Body)
	check("receipt mac", mac(key("receipt"), th, less(t, receipt.KeycopyReceiptBody)), receipt.MAC[:])
	tr.add("RECEIPT", frames[5].Body)
	check("close mac", mac(key("close"), th, less(t, end.KeycopyStepBody)), end.MAC[:])
	tr.add("CLOSE", frames[6].Body)
	if len(tr) != 42 {
		t.Errorf("%d values", len(tr))
	}
	compareTranscript(t, tr)
}

func compareTranscript(t *testing.T, tr transcript) {
	t.Helper()
	got, err := json.MarshalIndent(map[string]any{"protocol": "keycopy/1, mode pake, suite 1", "values": tr}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const path = "testdata/transcript.json"
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs: the protocol on the wire has changed", path)
	}
}

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
