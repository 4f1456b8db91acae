package doctor

import (
	"fmt"

	"github.com/kagimori/kagimori/hsm"
)

// power says what would break if the power failed now.
func power(s *Snapshot) (list []string) {
	if !s.Running {
		return []string{"the daemon does not run: nothing of it is under way, the store is as it was last written"}
	}
	if !s.Open {
		return []string{"nothing is open, so nothing is under way: it would be as it is now"}
	}
	if s.Use != nil || s.HealthErr != nil {
		list = append(list, "key storage cannot be used: nothing would be lost, but after the start nothing opens until it can")
	}
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	h := &s.Held
	if h.Offer {
		add("the operator code that stands would be lost; a copy whose codes have matched goes on by itself after the start, any other needs a new code")
	}
	if h.Copying {
		add("the key copy to this terminal would break off: if the codes have matched it goes on by itself after the start, else it needs a new code; either all of its keys are here, or none")
	}
	if h.PIN {
		add("a PIN is being judged just now: the TPM would count it as a wrong one")
	}
	if h.Results > 0 {
		add("%s the server has not acknowledged: kept, and sent again", count(h.Results, "result of a command", "results of commands"))
	}
	if h.Requested > 0 {
		add("%s asked for: the same request is repeated and gets the same certificate", count(h.Requested, "credential is", "credentials are"))
	}
	if h.Unreported > 0 {
		add("%s not reported to the server yet: kept, and reported then", count(h.Unreported, "credential is", "credentials are"))
	}
	if h.Untold > 0 {
		add("%s not reported to the server yet: kept, and reported then", count(h.Untold, "key copy is", "key copies are"))
	}
	if len(h.Copies) > 0 {
		add("%s open: after the start it goes on by itself, when the other terminal is there", count(len(h.Copies), "key copy is", "key copies are"))
	}
	if st := s.Store; st != nil {
		if st.Unfinished != "" || !st.CopyFresh {
			add("the second copy of the store is behind: if the power cut also damaged the file, what was written since would be lost")
		}
		if !st.RollbackProof {
			add("an older store file put back while the power is off would be %s", noticed(s))
		}
	}
	if len(list) == 0 {
		return []string{"nothing would be lost"}
	}
	return list
}

// noticed says what an older file would come to without a chip that counts.
func noticed(s *Snapshot) string {
	if s.Store.Counter == nil {
		return "taken for good: there is no counter"
	}
	if s.Health != nil && s.Health.Level == hsm.LevelFile {
		return "refused, unless the counter file beside it is put back too: level \"file\" is not proof against that"
	}
	return "refused, unless its counter is turned back too"
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// summary is the state in a line each, for people who want to see that it was
// looked at.
func summary(s *Snapshot) (list []string) {
	if s.Use != nil || s.HealthErr != nil {
		list = append(list, "key storage cannot be used: nothing would be lost, but after the start nothing opens until it can")
	}
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if h := s.Health; h != nil {
		line := fmt.Sprintf("key storage: %s", h.Level)
		if c := h.Chip; c != nil {
			line += fmt.Sprintf(", %s firmware %s, %d of %d wrong tries", c.Maker, c.Firmware, c.Lockout.Count, c.Lockout.Limit)
		}
		add("%s", line)
	}
	if st := s.Store; st != nil {
		line := fmt.Sprintf("store: epoch %d, bound to %s", st.Epoch, st.Bond)
		if st.CopyFresh {
			line += ", second copy good"
		}
		add("%s", line)
	}
	if d := s.Disk; d != nil && d.Total > 0 {
		add("disk: %s free of %s, %s", size(d.Free), size(d.Total), d.Type)
	}
	if l := s.Link; l.Up {
		add("server: connected to %s", l.Server)
	}
	if a := s.Audit; a != nil && a.Sound {
		add("audit log: %s, %d after the last anchor", count(a.Entries, "entry", "entries"), a.Unanchored)
	}
	if s.Running && s.Unit == nil {
		add("unit: not started by systemd, so its confinement is not in force")
	}
	return list
}
