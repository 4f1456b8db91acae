package mdns

// The little of DNS (RFC 1035) that a hint takes: one question, and four records
// in answer. Whatever else comes in is skipped, within bounds.

import (
	"encoding/binary"
	"errors"
	"strings"
)

const (
	// Service is what an offer is found by.
	Service = "_keycopy._tcp.local"

	// maxPacket bounds what is read; more would have come in fragments.
	maxPacket = 1500
	// maxRecords bounds the questions and records of one message.
	maxRecords = 32
	// maxName bounds a name on the wire, maxLabel a part of it.
	maxName, maxLabel = 255, 63

	headerSize = 12
	typeA      = 1
	typePTR    = 12
	typeTXT    = 16
	typeSRV    = 33
	typeANY    = 255
	classIN    = 1
	// topBit of a class asks for a unicast answer, or says that old records go.
	topBit = 1 << 15
	// flagAnswer and flagAuthority are of the header; opcodeMask is 0 in a query.
	flagAnswer, flagAuthority, opcodeMask = 1 << 15, 1 << 10, 0xf << 11
	// timeToLive is what RFC 6762 §6.7 allows at most in answers to simple askers.
	timeToLive = 10
)

var errMessage = errors.New("not a message that is understood here")

// A question of a message.
type question struct {
	name string // lower case, without the last dot
	kind uint16
}

// A record of an answer, of which only SRV is looked into.
type record struct {
	name string
	kind uint16
	port uint16 // of an SRV
	to   string // the target of a PTR or SRV
}

type message struct {
	id        uint16
	answer    bool
	questions []question
	records   []record
}

// parse reads a message. It is strict about what it reads and takes no more than
// its bounds.
func parse(b []byte) (*message, error) {
	if len(b) < headerSize || len(b) > maxPacket {
		return nil, errMessage
	}
	flags := binary.BigEndian.Uint16(b[2:])
	m := &message{id: binary.BigEndian.Uint16(b), answer: flags&flagAnswer != 0}
	asked := int(binary.BigEndian.Uint16(b[4:]))
	told := int(binary.BigEndian.Uint16(b[6:])) + int(binary.BigEndian.Uint16(b[8:])) + int(binary.BigEndian.Uint16(b[10:]))
	if flags&opcodeMask != 0 || asked+told > maxRecords {
		return nil, errMessage
	}
	at := headerSize
	for range asked {
		name, next, err := readName(b, at)
		if err != nil || next+4 > len(b) {
			return nil, errMessage
		}
		if binary.BigEndian.Uint16(b[next+2:])&^topBit == classIN {
			m.questions = append(m.questions, question{name, binary.BigEndian.Uint16(b[next:])})
		}
		at = next + 4
	}
	for range told {
		name, next, err := readName(b, at)
		if err != nil || next+10 > len(b) {
			return nil, errMessage
		}
		r := record{name: name, kind: binary.BigEndian.Uint16(b[next:])}
		class := binary.BigEndian.Uint16(b[next+2:]) &^ topBit
		data := next + 10
		if at = data + int(binary.BigEndian.Uint16(b[next+8:])); at > len(b) {
			return nil, errMessage
		}
		if err := r.read(b[:at], data); err != nil {
			return nil, err
		}
		if class == classIN {
			m.records = append(m.records, r)
		}
	}
	return m, nil
}

// read looks into the data of a record, which end with b.
func (r *record) read(b []byte, data int) (err error) {
	switch r.kind {
	case typeSRV:
		if data+6 > len(b) {
			return errMessage
		}
		r.port = binary.BigEndian.Uint16(b[data+4:])
		data += 6
	case typePTR:
	default:
		return nil
	}
	var next int
	if r.to, next, err = readName(b, data); err == nil && next != len(b) {
		err = errMessage
	}
	return err
}

// readName reads a name and says where what follows it begins. Pointers go
// backwards only, so that it ends.
func readName(b []byte, at int) (name string, next int, err error) {
	var s strings.Builder
	length := 1
	for floor := at; ; {
		if at >= len(b) {
			return "", 0, errMessage
		}
		n := int(b[at])
		switch {
		case n == 0:
			if next == 0 {
				next = at + 1
			}
			return s.String(), next, nil
		case n >= 0xc0:
			if at+1 >= len(b) {
				return "", 0, errMessage
			}
			if next == 0 {
				next = at + 2
			}
			to := (n&0x3f)<<8 | int(b[at+1])
			if to >= floor || to < headerSize {
				return "", 0, errMessage
			}
			at, floor = to, to
			continue
		case n > maxLabel || at+1+n > len(b):
			return "", 0, errMessage
		}
		if length += 1 + n; length > maxName {
			return "", 0, errMessage
		}
		if s.Len() > 0 {
			s.WriteByte('.')
		}
		for _, c := range b[at+1 : at+1+n] {
			switch {
			case c == '.':
				return "", 0, errMessage // it would read as two labels
			case c >= 'A' && c <= 'Z':
				c += 'a' - 'A'
			}
			s.WriteByte(c)
		}
		at += 1 + n
	}
}

func appendName(b []byte, name string) []byte {
	for _, label := range strings.Split(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

func appendHeader(b []byte, id, flags uint16, counts ...uint16) []byte {
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, flags)
	for _, n := range counts {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return b
}

func appendQuestion(b []byte, q question) []byte {
	b = binary.BigEndian.AppendUint16(appendName(b, q.name), q.kind)
	return binary.BigEndian.AppendUint16(b, classIN)
}

func appendRecord(b []byte, name string, kind uint16, data []byte) []byte {
	b = binary.BigEndian.AppendUint16(appendName(b, name), kind)
	b = binary.BigEndian.AppendUint16(b, classIN)
	b = binary.BigEndian.AppendUint32(b, timeToLive)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// query asks who offers.
func query(id uint16) []byte {
	return appendQuestion(appendHeader(nil, id, 0, 1, 0, 0, 0), question{Service, typePTR})
}

// A hint is what is told of an offer: where, and a name that is worth nothing.
type hint struct {
	label string
	port  uint16
}

func (h hint) instance() string { return h.label + "." + Service }
func (h hint) host() string     { return h.label + ".local" }

// asked says whether a question is about the hint.
func (h hint) asked(q question) bool {
	switch q.kind {
	case typePTR:
		return q.name == Service
	case typeSRV, typeTXT:
		return q.name == h.instance()
	case typeA:
		return q.name == h.host()
	case typeANY:
		return q.name == Service || q.name == h.instance() || q.name == h.host()
	}
	return false
}

// answer tells the hint, with the address at which this machine was asked. To a
// simple asker, who is not at the port of mDNS, his question goes back.
func (h hint) answer(id uint16, address [4]byte, simple *question) []byte {
	asked := uint16(0)
	if simple != nil {
		asked = 1
	}
	b := appendHeader(nil, id, flagAnswer|flagAuthority, asked, 1, 0, 3)
	if simple != nil {
		b = appendQuestion(b, *simple)
	}
	b = appendRecord(b, Service, typePTR, appendName(nil, h.instance()))
	b = appendRecord(b, h.instance(), typeSRV, appendName([]byte{0, 0, 0, 0, byte(h.port >> 8), byte(h.port)}, h.host()))
	b = appendRecord(b, h.instance(), typeTXT, []byte{0})
	return appendRecord(b, h.host(), typeA, address[:])
}

// ports are those of the offers that an answer names.
func (m *message) ports() (list []uint16) {
	for _, p := range m.records {
		if p.kind != typePTR || p.name != Service {
			continue
		}
		for _, s := range m.records {
			if s.kind == typeSRV && s.name == p.to && s.port != 0 {
				list = append(list, s.port)
			}
		}
	}
	return list
}
