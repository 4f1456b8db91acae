package audit

import (
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/store"
)

// A Line is an entry for people.
type Line struct {
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time,omitzero"` // absent: the clock was not plausible
	Kind    Kind      `json:"kind"`
	Subject string    `json:"subject,omitempty"`
	Detail  string    `json:"detail,omitempty"`
}

// Line is e for people.
func (e *Entry) Line() Line {
	l := Line{Seq: e.Seq, Kind: e.Kind, Subject: e.Subject, Detail: e.Detail}
	if e.Time > 0 {
		l.Time = time.Unix(e.Time, 0).UTC()
	}
	return l
}

// A Filter picks entries. Entries of unknown time count as later than any Since
// when they stand behind one that is.
type Filter struct {
	Since int64 // Unix seconds; 0: all
	Kind  Kind  // empty: all
}

// List calls fn with what the filter lets pass, oldest first.
func List(tx *store.Tx, f Filter, fn func(Line) error) error {
	late := f.Since == 0
	err := tx.Each(bucketEntries, func(_ string, decode func(any) error) error {
		var e Entry
		if err := decode(&e); err != nil {
			return err
		}
		if e.Time > 0 {
			late = e.Time >= f.Since
		}
		if !late || f.Kind != "" && f.Kind != e.Kind {
			return nil
		}
		return fn(e.Line())
	})
	if err != nil {
		return fmt.Errorf("read audit log: %w", err)
	}
	return nil
}

// Each calls fn with every entry, oldest first.
func Each(tx *store.Tx, fn func(*Entry) error) error {
	err := tx.Each(bucketEntries, func(_ string, decode func(any) error) error {
		var e Entry
		if err := decode(&e); err != nil {
			return err
		}
		return fn(&e)
	})
	if err != nil {
		return fmt.Errorf("read audit log: %w", err)
	}
	return nil
}
