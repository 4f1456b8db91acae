package transport

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// everyKeycopy is one of each message of the key copy, with every field set.
func everyKeycopy(t testing.TB) []KeycopyMessage {
	manifest, err := Marshal(keycopyManifest())
	if err != nil {
		t.Fatal(err)
	}
	hello := KeycopyHelloBody{Version: KeycopyVersion, Mode: KeycopyPAKE, Suite: KeycopyCPace21, CodeID: KeycopyCodeID{"default", 1},
		Target: DeviceID{1}, Nonce: [32]byte{2}, Want: TransferCopy, Select: []Name{"cr-1"}, Share: &KeycopyPoint{3}}
	direct := hello
	direct.Mode, direct.Share, direct.Code, direct.Want, direct.Select = KeycopyDirect, nil, bytes.Repeat([]byte{4}, keycopySealed), TransferMove, nil
	return []KeycopyMessage{
		&KeycopyHello{hello, KeycopyTag{5}},
		&KeycopyHello{direct, KeycopyTag{5}},
		&KeycopyHelloAck{KeycopyHelloAckBody{DeviceID{6}, [32]byte{7}, ID{8}, KeycopyPoint{9}}, KeycopyTag{10}},
		&KeycopyProof{KeycopyTag{11}},
		&KeycopyGrant{Tag: KeycopyTag{12}, Manifest: manifest},
		&KeycopyGrant{KeycopyTag{12}, manifest, &KeycopyGrantAck{DeviceID{6}, [32]byte{7}, ID{8}}, &KeycopyTag{10}, nil},
		&KeycopyGrant{KeycopyTag{12}, manifest, &KeycopyGrantAck{DeviceID{6}, [32]byte{7}, ID{8}}, &KeycopyTag{10}, bytes.Repeat([]byte{13}, keycopySealed)},
		&KeycopyItem{1, "cr-1", []byte{13}},
		&KeycopyReceipt{KeycopyReceiptBody{ID{14}, KeycopyTag{15}, []byte{1}}, KeycopyTag{16}, nil},
		&KeycopyReceipt{KeycopyReceiptBody{ID{14}, KeycopyTag{15}, []byte{1}}, KeycopyTag{16}, []byte{17}},
		&KeycopyCommit{KeycopyStepBody{ID{18}}, KeycopyTag{19}},
		&KeycopyActivated{KeycopyStepBody{ID{18}}, KeycopyTag{19}, []byte{17}},
		&KeycopyClose{KeycopyStepBody{ID{18}}, KeycopyTag{19}},
		&KeycopyResume{KeycopyResumeBody{ID{18}, KeycopyStaged, [32]byte{7}}, KeycopyTag{19}},
		&KeycopyResumed{KeycopyResumeBody{ID{18}, KeycopyCommitted, [32]byte{7}}, KeycopyTag{19}},
		&KeycopyError{KeycopyAuthFailed},
	}
}

func keycopyManifest() *KeycopyManifest {
	return &KeycopyManifest{
		Items:    []KeycopyEntry{{ID: "cr-1", Subject: "nav-001", Kind: KindCertificate, Service: "maps", Length: 700, Transfer: TransferCopy, Usage: UsageClient}},
		Withheld: []KeycopyWithheld{{"cr-2", KeycopyExpired}},
		More:     1,
	}
}

// Old terminals meet new ones: these bytes never change, new ones are added.
func TestKeycopyGoldenBytes(t *testing.T) {
	var got bytes.Buffer
	for _, m := range everyKeycopy(t) {
		f, err := EncodeKeycopy(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%02x %s %s\n", uint8(f.Type), f.Type, hex.EncodeToString(f.Body))
	}
	manifest, err := Marshal(keycopyManifest())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&got, "manifest %s\n", hex.EncodeToString(manifest))
	compareGolden(t, "testdata/keycopy.golden", got.Bytes())
	if n := bytes.Count(got.Bytes(), []byte("\n")); n != 17 {
		t.Errorf("%d lines in the table", n)
	}
}

// The numbers on the wire never change either.
func TestKeycopyNumbers(t *testing.T) {
	for i, typ := range []KeycopyType{KeycopyTypeHello, KeycopyTypeHelloAck, KeycopyTypeProof, KeycopyTypeGrant, KeycopyTypeItem,
		KeycopyTypeReceipt, KeycopyTypeCommit, KeycopyTypeActivated, KeycopyTypeClose, KeycopyTypeResume} {
		if int(typ) != i+1 || strings.HasPrefix(typ.String(), "frame") {
			t.Errorf("%s is %d, want %d", typ, typ, i+1)
		}
	}
	for i, fault := range []KeycopyFault{KeycopyProtocol, KeycopyVersionRefused, KeycopyModeRefused, KeycopyCodeUnknown, KeycopyAuthFailed, KeycopyNotArmed,
		KeycopyBusy, KeycopyTxnUnknown, KeycopyTxnConflict, KeycopyManifestRejected, KeycopyStoreFailed, KeycopyAborted, KeycopyTimeout} {
		if int(fault) != i+1 || strings.Contains(fault.Error(), "fault") {
			t.Errorf("%v is %d, want %d", fault, fault, i+1)
		}
	}
	for i, why := range []KeycopyReason{KeycopyNeverTransfer, KeycopyMoveOnly, KeycopyChipOnly, KeycopyExpired, KeycopyInvalid, KeycopyNotHeld, KeycopyTooLarge, KeycopyDamaged, KeycopyNotSelected,
		KeycopyNoChip, KeycopyChipNotApproved, KeycopyChipStays, KeycopyChipFailed} {
		if int(why) != i+1 || strings.HasPrefix(why.String(), "reason") {
			t.Errorf("%v is %d, want %d", why, why, i+1)
		}
	}
	if KeycopyTypeError != 15 || KeycopyFault(99).Error() == "" || KeycopyReason(99).String() != "reason 99" || KeycopyType(99).String() != "frame 0x63" {
		t.Error("unknown numbers have no name")
	}
	if KeycopyPAKE.ALPN() != "keycopy/1-pake" || KeycopyCPace21.String() != "CPACE-RISTR255-SHA512 draft-irtf-cfrg-cpace-21" {
		t.Error("the names in the transcript changed")
	}
}

func TestKeycopyRefusesWhatCBORLetsThrough(t *testing.T) {
	many := make([]Name, MaxKeycopySelect+1)
	for i := range many {
		many[i] = Name(fmt.Sprintf("cr-%d", i))
	}
	hello := func(change func(*KeycopyHello)) KeycopyMessage {
		h := everyKeycopy(t)[0].(*KeycopyHello)
		change(h)
		return h
	}
	for name, m := range map[string]KeycopyMessage{
		"want never":                  hello(func(h *KeycopyHello) { h.Want = TransferNever }),
		"pake, no share":              hello(func(h *KeycopyHello) { h.Share = nil }),
		"pake with code":              hello(func(h *KeycopyHello) { h.Code = []byte{1} }),
		"direct with share":           hello(func(h *KeycopyHello) { h.Mode = KeycopyDirect }),
		"direct, short code":          hello(func(h *KeycopyHello) { h.Mode, h.Share, h.Code = KeycopyDirect, nil, make([]byte, keycopySealed-1) }),
		"kek, long code":              hello(func(h *KeycopyHello) { h.Mode, h.Share, h.Code = KeycopyKEK, nil, make([]byte, keycopySealed+1) }),
		"GRANT without its admission": &KeycopyGrant{Manifest: []byte{1}, Ack: &KeycopyGrantAck{}},
		"GRANT with admission only":   &KeycopyGrant{Manifest: []byte{1}, Admit: &KeycopyTag{}},
		"GRANT of pake with a KEK":    &KeycopyGrant{Manifest: []byte{1}, KEK: make([]byte, keycopySealed)},
		"GRANT with a short KEK":      &KeycopyGrant{Manifest: []byte{1}, Ack: &KeycopyGrantAck{}, Admit: &KeycopyTag{}, KEK: make([]byte, keycopySealed-1)},
		"too many ids":                hello(func(h *KeycopyHello) { h.Select = many }),
		"an id twice":                 hello(func(h *KeycopyHello) { h.Select = []Name{"a", "a"} }),
		"no name":                     hello(func(h *KeycopyHello) { h.Select = []Name{"A"} }),
		"no group":                    hello(func(h *KeycopyHello) { h.CodeID.Group = "" }),
		"no manifest":                 &KeycopyGrant{},
		"item 4096":                   &KeycopyItem{Seq: MaxKeycopyItems, ID: "a"},
		"item without id":             &KeycopyItem{},
		"long status":                 &KeycopyReceipt{KeycopyReceiptBody: KeycopyReceiptBody{Status: make([]byte, MaxKeycopyItems/8+1)}},
		"long signature":              &KeycopyReceipt{Signature: make([]byte, 73)},
	} {
		if _, err := EncodeKeycopy(m); err == nil {
			t.Errorf("%s: encoded", name)
		}
		body, err := Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := DecodeKeycopy(KeycopyFrame{m.Frame(), body}, m); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: decoded, %v", name, err)
		}
	}
	f, err := EncodeKeycopy(&KeycopyProof{})
	if err != nil {
		t.Fatal(err)
	}
	if err := DecodeKeycopy(f, &KeycopyClose{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("PROOF read as CLOSE: %v", err)
	}
}

// The largest of each list fits its frame.
func TestKeycopyLimitsFit(t *testing.T) {
	long := func(i int) Name { return Name(fmt.Sprintf("%063d", i)) }
	h := everyKeycopy(t)[0].(*KeycopyHello)
	h.CodeID.Group, h.CodeID.Epoch, h.Select = long(0), 1<<32-1, nil
	for i := range MaxKeycopySelect {
		h.Select = append(h.Select, long(i))
	}
	h.Parent = &KeycopyParent{make([]byte, maxKeycopyParent), make([]byte, maxKeycopyApproval)}
	if _, err := EncodeKeycopy(h); err != nil {
		t.Error(err)
	}
	h.Mode, h.Share, h.Code = KeycopyDirect, nil, make([]byte, keycopySealed)
	if _, err := EncodeKeycopy(h); err != nil {
		t.Error(err)
	}
	if _, err := EncodeKeycopy(&KeycopyItem{MaxKeycopyItems - 1, long(0), make([]byte, MaxKeycopyRecord+16)}); err != nil {
		t.Error(err)
	}
	if _, err := EncodeKeycopy(&KeycopyReceipt{KeycopyReceiptBody{Status: make([]byte, MaxKeycopyItems/8)}, KeycopyTag{}, make([]byte, maxKeycopySignature)}); err != nil {
		t.Error(err)
	}
}

func TestKeycopyManifestLimits(t *testing.T) {
	for name, change := range map[string]func(*KeycopyManifest){
		"empty record":     func(m *KeycopyManifest) { m.Items[0].Length = 0 },
		"large record":     func(m *KeycopyManifest) { m.Items[0].Length = MaxKeycopyRecord + 1 },
		"no subject":       func(m *KeycopyManifest) { m.Items[0].Subject = "" },
		"kind to look at":  func(m *KeycopyManifest) { m.Items[0].Kind = "key-pair\x1b[2J" },
		"usage of a novel": func(m *KeycopyManifest) { m.Items[0].Usage = Usage(strings.Repeat("u", 100)) },
		"an id twice":      func(m *KeycopyManifest) { m.Items = append(m.Items, m.Items[0]) },
		"withheld unname":  func(m *KeycopyManifest) { m.Withheld[0].ID = "" },
		"many withheld":    func(m *KeycopyManifest) { m.Withheld = make([]KeycopyWithheld, MaxKeycopyWithheld+1) },
		"16 MiB and more": func(m *KeycopyManifest) {
			e := m.Items[0]
			m.Items = nil
			for i := range MaxKeycopyTotal/MaxKeycopyRecord + 1 {
				e.ID, e.Length = Name(fmt.Sprintf("cr-%d", i)), MaxKeycopyRecord
				m.Items = append(m.Items, e)
			}
		},
		"4097 items": func(m *KeycopyManifest) {
			e := KeycopyEntry{Subject: "s", Service: "s", Length: 1}
			m.Items = nil
			for i := range MaxKeycopyItems + 1 {
				e.ID = Name(fmt.Sprintf("cr-%d", i))
				m.Items = append(m.Items, e)
			}
		},
	} {
		m := keycopyManifest()
		change(m)
		data, err := Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeKeycopyManifest(data); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	data, err := Marshal(keycopyManifest())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeKeycopyManifest(data); err != nil {
		t.Error(err)
	}
}

// Whatever a decoder takes, it gives back byte for byte, and never panics.
func FuzzKeycopy(f *testing.F) {
	for _, m := range everyKeycopy(f) {
		frame, err := EncodeKeycopy(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(frame.Type), frame.Body)
	}
	manifest, err := Marshal(keycopyManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(0), manifest)
	f.Fuzz(func(t *testing.T, typ uint8, body []byte) {
		if m, err := DecodeKeycopyManifest(body); err == nil {
			if again, err := Marshal(m); err != nil || !bytes.Equal(again, body) {
				t.Fatalf("manifest %x decodes and encodes to %x (%v)", body, again, err)
			}
		}
		for _, m := range []KeycopyMessage{new(KeycopyHello), new(KeycopyHelloAck), new(KeycopyProof), new(KeycopyGrant), new(KeycopyItem),
			new(KeycopyReceipt), new(KeycopyCommit), new(KeycopyActivated), new(KeycopyClose), new(KeycopyResume), new(KeycopyResumed), new(KeycopyError)} {
			in := KeycopyFrame{KeycopyType(typ), body}
			if err := DecodeKeycopy(in, m); err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatalf("%s: %v is not ErrMalformed", m.Frame(), err)
				}
				continue
			}
			if out, err := EncodeKeycopy(m); err != nil || out.Type != in.Type || !bytes.Equal(out.Body, in.Body) {
				t.Fatalf("%s: %x decodes and encodes to %x (%v)", m.Frame(), body, out.Body, err)
			}
		}
	})
}
