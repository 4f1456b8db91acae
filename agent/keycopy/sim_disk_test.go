package keycopy

// The simulator's disk: a log of records, each with its length and checksum, of
// which a power cut leaves what was synced and as much of the rest as it likes.
// simStore is what the log says, simEnd (sim_journal_test.go) writes it.
// sim_world_test.go is where to start.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/kagimori/kagimori/transport"
)

// tear is how much of the unsynced bytes a power cut leaves.
type tear byte

const (
	tearNone   tear = 'n' // nothing
	tearHead   tear = 'h' // the length and a byte of the checksum
	tearMiddle tear = 'm' // half
	tearLast   tear = 'c' // all but the last byte
	tearAll    tear = 'a' // everything
)

var tears = []tear{tearNone, tearHead, tearMiddle, tearLast, tearAll}

type simDisk struct {
	bytes  []byte
	synced int
}

func (d *simDisk) append(b []byte) { d.bytes = append(d.bytes, b...) }

func (d *simDisk) sync() { d.synced = len(d.bytes) }

// cut is a power cut. What is left is on the disk for good.
func (d *simDisk) cut(keep tear) {
	pending := len(d.bytes) - d.synced
	switch keep {
	case tearNone:
		pending = 0
	case tearHead:
		pending = min(pending, 5)
	case tearMiddle:
		pending /= 2
	case tearLast:
		pending = max(0, pending-1)
	}
	d.bytes = slices.Clone(d.bytes[:d.synced+pending])
	d.synced = len(d.bytes)
}

// keyUse is what a terminal may do with a credential.
type keyUse string

const (
	useActive   keyUse = "active"
	useDisabled keyUse = "disabled" // given up by a Source that still has it
	useStaged   keyUse = "staged"   // at a Target, not its own yet
	useNone     keyUse = "none"     // destroyed
)

// simKey is a credential as it is on the disk. Record is encoded, and empty once
// destroyed.
type simKey struct {
	ID     transport.Name `cbor:"1,keyasint"`
	Use    keyUse         `cbor:"2,keyasint"`
	Txn    transport.ID   `cbor:"3,keyasint"` // that staged it
	Record []byte         `cbor:"4,keyasint"`
}

// simEntry is one durable step: all of it counts, or nothing.
type simEntry struct {
	Txns     []Transaction `cbor:"1,keyasint,omitempty"`
	Keys     []simKey      `cbor:"2,keyasint,omitempty"`
	Attempts *AttemptLog   `cbor:"3,keyasint,omitempty"`
	Counted  uint64        `cbor:"4,keyasint,omitempty"` // attempts ever counted, if Attempts is set
}

const simHeader = 8 // uint32 length, CRC-32

func encodeEntry(e *simEntry) []byte {
	body, err := transport.Marshal(e)
	if err != nil {
		panic(err)
	}
	out := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(body))
	return append(out, body...)
}

var errTorn = errors.New("torn record")

// decodeEntry reads the first record of b.
func decodeEntry(b []byte) (e *simEntry, rest []byte, err error) {
	if len(b) < simHeader {
		return nil, nil, errTorn
	}
	n := int(binary.BigEndian.Uint32(b))
	if n > len(b)-simHeader {
		return nil, nil, errTorn
	}
	body := b[simHeader : simHeader+n]
	if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(b[4:]) {
		return nil, nil, errTorn
	}
	e = &simEntry{}
	if err := transport.Unmarshal(body, e, 1<<20); err != nil {
		return nil, nil, fmt.Errorf("whole record: %w", err)
	}
	return e, b[simHeader+n:], nil
}

// simStore is what a log says.
type simStore struct {
	txns    map[transport.ID]*Transaction
	order   []transport.ID // as they were first written
	keys    map[transport.Name]simKey
	log     AttemptLog
	counted uint64
}

func newStore() *simStore {
	return &simStore{txns: map[transport.ID]*Transaction{}, keys: map[transport.Name]simKey{}}
}

func (s *simStore) apply(e *simEntry) {
	for i := range e.Txns {
		t := e.Txns[i]
		if s.txns[t.ID] == nil {
			s.order = append(s.order, t.ID)
		}
		s.txns[t.ID] = &t
	}
	for _, k := range e.Keys {
		s.keys[k.ID] = k
	}
	if e.Attempts != nil {
		s.log, s.counted = *e.Attempts, e.Counted
	}
}

// newest is the transaction that was begun last, or nil.
func (s *simStore) newest() *Transaction {
	if len(s.order) == 0 {
		return nil
	}
	return s.txns[s.order[len(s.order)-1]]
}

// clone is s for an end whose RAM is its own.
func (s *simStore) clone() *simStore {
	c := newStore()
	c.order = slices.Clone(s.order)
	for id, t := range s.txns {
		c.txns[id] = t
	}
	for id, k := range s.keys {
		c.keys[id] = k
	}
	c.log, c.counted = cloneLog(s.log), s.counted
	return c
}

func cloneLog(l AttemptLog) AttemptLog {
	l.Failures, l.Typed, l.Salt = slices.Clone(l.Failures), slices.Clone(l.Typed), slices.Clone(l.Salt)
	return l
}

// open reads the disk after a power cut, and forgets a torn last record.
func (d *simDisk) open() (*simStore, error) {
	s, rest := newStore(), d.bytes
	for len(rest) > 0 {
		e, after, err := decodeEntry(rest)
		if errors.Is(err, errTorn) {
			d.bytes = d.bytes[:len(d.bytes)-len(rest)]
			d.synced = len(d.bytes)
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		s.apply(e)
		rest = after
	}
	return s, nil
}

// entries is the whole history.
func (d *simDisk) entries() (all []*simEntry) {
	for rest := d.bytes[:d.synced]; len(rest) > 0; {
		e, after, err := decodeEntry(rest)
		if err != nil {
			return all
		}
		all, rest = append(all, e), after
	}
	return all
}
