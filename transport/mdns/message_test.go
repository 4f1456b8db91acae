package mdns

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

var (
	testHint = hint{label: "kabcdef", port: 8885}
	asker    = netip.MustParseAddrPort("192.0.2.9:40000")
	here     = arrival{network: 2, address: [4]byte{192, 0, 2, 7}}
)

// A real DNS library reads what is written here.
func TestMessagesAsOthersReadThem(t *testing.T) {
	var m dnsmessage.Message
	if err := m.Unpack(query(7)); err != nil || m.ID != 7 || m.Response || len(m.Questions) != 1 || m.Questions[0].Name.String() != Service+"." || m.Questions[0].Type != dnsmessage.TypePTR {
		t.Fatalf("query %+v, %v", m, err)
	}
	for _, simple := range []bool{true, false} {
		from := asker
		if !simple {
			from = netip.AddrPortFrom(asker.Addr(), port)
		}
		if err := m.Unpack(testHint.reply(packet{query(7), from, here})); err != nil || !m.Response || !m.Authoritative {
			t.Fatalf("answer %+v, %v", m, err)
		}
		if simple != (len(m.Questions) == 1 && m.ID == 7) || len(m.Answers) != 1 || len(m.Additionals) != 3 {
			t.Errorf("to port %d: %+v", from.Port(), m)
		}
		ptr, _ := m.Answers[0].Body.(*dnsmessage.PTRResource)
		srv, _ := m.Additionals[0].Body.(*dnsmessage.SRVResource)
		txt, _ := m.Additionals[1].Body.(*dnsmessage.TXTResource)
		a, _ := m.Additionals[2].Body.(*dnsmessage.AResource)
		if ptr == nil || ptr.PTR.String() != "kabcdef._keycopy._tcp.local." || srv == nil || srv.Port != 8885 || srv.Target.String() != "kabcdef.local." || txt == nil || a == nil || a.A != here.address {
			t.Errorf("records %+v %+v", m.Answers, m.Additionals)
		}
		for _, r := range slices.Concat(m.Answers, m.Additionals) {
			if r.Header.TTL > timeToLive || r.Header.Class != dnsmessage.ClassINET {
				t.Errorf("%+v", r.Header)
			}
		}
	}
}

// packed is what a real DNS library writes, names compressed.
func packed(t testing.TB, m dnsmessage.Message) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func name(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }

func others(t testing.TB) []byte {
	h := func(n string, k dnsmessage.Type) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: name(n), Type: k, Class: dnsmessage.ClassINET | topBit, TTL: 120}
	}
	return packed(t, dnsmessage.Message{
		Header: dnsmessage.Header{ID: 7, Response: true, Authoritative: true},
		Answers: []dnsmessage.Resource{
			{Header: h("_keycopy._tcp.local.", dnsmessage.TypePTR), Body: &dnsmessage.PTRResource{PTR: name("x._KeyCopy._tcp.local.")}},
			{Header: h("_http._tcp.local.", dnsmessage.TypePTR), Body: &dnsmessage.PTRResource{PTR: name("y._http._tcp.local.")}}},
		Additionals: []dnsmessage.Resource{
			{Header: h("x._keycopy._tcp.local.", dnsmessage.TypeSRV), Body: &dnsmessage.SRVResource{Port: 4711, Target: name("box.local.")}},
			{Header: h("y._http._tcp.local.", dnsmessage.TypeSRV), Body: &dnsmessage.SRVResource{Port: 80, Target: name("box.local.")}},
			{Header: h("box.local.", dnsmessage.TypeAAAA), Body: &dnsmessage.AAAAResource{}}},
	})
}

func TestReadingWhatOthersWrite(t *testing.T) {
	m, err := parse(others(t))
	if err != nil || !m.answer || !slices.Equal(m.ports(), []uint16{4711}) {
		t.Fatalf("%+v, %v", m, err)
	}
	questions := func(list ...dnsmessage.Question) []byte { return packed(t, dnsmessage.Message{Questions: list}) }
	q := func(n string, k dnsmessage.Type) dnsmessage.Question {
		return dnsmessage.Question{Name: name(n), Type: k, Class: dnsmessage.ClassINET | topBit}
	}
	for n, tt := range []struct {
		packet []byte
		want   bool
	}{
		{questions(q("_keycopy._tcp.local.", dnsmessage.TypePTR)), true},
		{questions(q("_KEYCOPY._TCP.Local.", dnsmessage.TypeALL)), true},
		{questions(q("_http._tcp.local.", dnsmessage.TypePTR), q("_keycopy._tcp.local.", dnsmessage.TypePTR)), true},
		{questions(q("kabcdef._keycopy._tcp.local.", dnsmessage.TypeSRV)), true},
		{questions(q("kabcdef.local.", dnsmessage.TypeA)), true},
		{questions(q("kabcdef.local.", dnsmessage.TypeAAAA)), false},
		{questions(q("_keycopy._tcp.local.", dnsmessage.TypeA)), false},
		{questions(q("nav-001.local.", dnsmessage.TypeA)), false},
		{questions(), false},
		{others(t), false},
		{testHint.answer(7, here.address, nil), false},
	} {
		if got := testHint.reply(packet{tt.packet, asker, here}) != nil; got != tt.want {
			t.Errorf("question %d is answered: %v", n, got)
		}
	}
	if testHint.reply(packet{query(1), asker, arrival{}}) != nil {
		t.Error("answered on no network")
	}
}

// Nobody is sent to a third machine, and no more are taken than can be shown.
func TestWhatIsFound(t *testing.T) {
	p := packet{testHint.answer(7, [4]byte{10, 9, 9, 9}, nil), asker, here}
	found := add(add(nil, p, 7), p, 7)
	if !slices.Equal(found, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:8885")}) {
		t.Errorf("%v", found)
	}
	if got := add(nil, p, 8); got != nil {
		t.Errorf("an answer to another question: %v", got)
	}
	for n := range uint16(2 * maxFound) {
		found = add(found, packet{hint{"k", 1000 + n}.answer(7, here.address, nil), asker, here}, 7)
	}
	if len(found) != maxFound {
		t.Errorf("%d are found", len(found))
	}
}

// What is malformed, too long, or runs in circles is refused.
func TestMalformed(t *testing.T) {
	good := others(t)
	for n := range good {
		if m, err := parse(good[:n]); err == nil && len(m.ports()) > 0 && n < len(good)-30 {
			t.Errorf("%d of %d bytes are read as %+v", n, len(good), m)
		}
	}
	head := appendHeader(nil, 0, 0, 1, 0, 0, 0)
	tail := []byte{0, typePTR, 0, classIN}
	for what, b := range map[string][]byte{
		"a loop":               slices.Concat(head, []byte{0xc0, 12}, tail),
		"a pointer forward":    slices.Concat(head, []byte{0xc0, 14, 0}, tail),
		"a pointer to headers": slices.Concat(head, []byte{0xc0, 0}, tail),
		"a long name":          slices.Concat(head, bytes.Repeat(append([]byte{63}, strings.Repeat("x", 63)...), 4), []byte{0}, tail),
		"a dot in a label":     slices.Concat(head, []byte{3, 'a', '.', 'b', 0}, tail),
		"a reserved label":     slices.Concat(head, []byte{0x80, 1, 0}, tail),
		"many questions":       appendHeader(nil, 0, 0, maxRecords, 0, 0, 1),
		"another operation":    slices.Concat(appendHeader(nil, 0, 2<<11, 1, 0, 0, 0), []byte{0}, tail),
		"too much":             make([]byte, maxPacket+1),
	} {
		if m, err := parse(b); err == nil {
			t.Errorf("%s is read as %+v", what, m)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(query(1))
	f.Add(others(f))
	f.Add(testHint.answer(1, here.address, &question{Service, typePTR}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if len(m.questions)+len(m.records) > maxRecords || len(m.ports()) > maxRecords*maxRecords {
			t.Errorf("%+v", m)
		}
		for _, q := range m.questions {
			if len(q.name) > maxName {
				t.Errorf("a name of %d bytes", len(q.name))
			}
		}
		if r := testHint.reply(packet{b, asker, here}); len(r) > maxPacket {
			t.Errorf("an answer of %d bytes", len(r))
		}
	})
}
