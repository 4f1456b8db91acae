package doctor

import (
	"fmt"
	"time"
)

// Key copies that are not over.

// A Copy is one of them.
type Copy struct {
	Txn  string // enough of its id to name it
	Text string // where it stands
	Next string
	// Open is for how long it has been open while the program ran.
	Open time.Duration
	// Away and Staged are keys that moved from here, or are about to move here, and
	// that this terminal may not use.
	Away, Staged int
	// Twice: both terminals use what moved.
	Twice bool
}

// copyTime is how long a copy may be open before that is worth a warning.
const copyTime = 10 * time.Minute

func copyFindings(s *Snapshot) (list []Finding) {
	for _, c := range s.Held.Copies {
		text := fmt.Sprintf("key copy %s: %s", c.Txn, c.Text)
		severity := Warning
		if c.Open < copyTime {
			severity = Note
		} else {
			text += fmt.Sprintf("; open for %s", spell(c.Open))
		}
		f := found(CopyOpen, severity, text)
		switch {
		case c.Twice:
			f = found(KeysTwice, Fault, text)
		case c.Staged > 0:
			f = found(KeysStaged, severity, text)
		case c.Away > 0:
			f = found(KeysAway, severity, text)
		}
		if c.Next != "" {
			f.Next = c.Next
		}
		list = append(list, f)
	}
	return list
}
