package doctor

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// Findings about the machine around the keys: disk, clock, certificates, link
// and unit.

const (
	// diskLeast is the most room that the store may need at a time, two copies of
	// the largest file; diskScant is too little for a second copy of a small one.
	diskLeast, diskScant = 64 << 20, 1 << 20
	// diskPart: a disk with less than one part in so many free is nearly full.
	diskPart = 10
	// drift is how far a clock may be off before anybody is told.
	drift = 2 * time.Minute
	// soon: a certificate with less than one part in so many of its life left
	// should have been renewed.
	soon = 4
)

func diskFindings(s *Snapshot) (list []Finding) {
	d := s.Disk
	if d == nil {
		return nil
	}
	list = FlashFindings(d)
	if slices.Contains(d.Options, "ro") && !errors.Is(s.Storage, syscall.EROFS) {
		f := found(StoreRefused, Fault, d.Path+" is mounted read-only")
		f.Consequence = "nothing that happens to keys from now on can be kept; after a restart the store does not open"
		f.Next = "see in the kernel log (dmesg) why, check the file system, and mount it for writing again"
		list = append(list, f)
	}
	switch {
	case d.Total == 0:
	case d.Free < diskScant:
		list = append(list, found(DiskFull, Fault, fmt.Sprintf("%s: %s free of %s", d.Path, size(d.Free), size(d.Total))))
	case d.Free < diskLeast && d.Free < d.Total/diskPart:
		list = append(list, found(DiskFull, Warning, fmt.Sprintf("%s: %s free of %s", d.Path, size(d.Free), size(d.Total))))
	}
	return list
}

// FlashFindings are those about the file system alone.
func FlashFindings(d *Disk) (list []Finding) {
	for _, risk := range d.risks() {
		list = append(list, found(FlashRisk, Warning, risk))
	}
	return list
}

func size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func clockFindings(s *Snapshot) []Finding {
	c := &s.Clock
	switch {
	case c.System.IsZero():
	case c.Trusted && c.Off.Abs() >= drift:
		f := found(Clock, Warning, fmt.Sprintf("the system clock is off by %s from the server's time; it is left alone", c.Off.Round(time.Second)))
		f.Consequence = "this daemon goes by the server's time; other programs do not, and after a restart nobody does until the server is reached"
		return []Finding{f}
	case c.Trusted:
	case c.System.Before(c.Floor.Add(-drift)):
		return []Finding{found(Clock, Warning, fmt.Sprintf("the system clock says %s, and %s is certainly over", stamp(c.System), stamp(c.Floor)))}
	case !c.Plausible:
		return []Finding{found(Clock, Warning, fmt.Sprintf("the system clock says %s, which is long after the last known time, %s", stamp(c.System), stamp(c.Floor)))}
	}
	return nil
}

func certificateFindings(s *Snapshot) (list []Finding) {
	for _, c := range s.Certificates {
		var f Finding
		switch {
		case c.Left <= 0:
			f = found(Certificate, Fault, fmt.Sprintf("%s has expired, on %s", c.What, stamp(c.Expires)))
		case c.Left < c.Life/soon:
			f = found(Certificate, Warning, fmt.Sprintf("%s expires in %s, on %s", c.What, spell(c.Left), stamp(c.Expires)))
		default:
			continue
		}
		if c.Next != "" {
			f.Next = c.Next
		}
		list = append(list, f)
	}
	return list
}

func linkFindings(s *Snapshot) []Finding {
	l := &s.Link
	if !l.Wanted || l.Up || l.Error == "" {
		return nil
	}
	f := found(Server, Warning, l.Error)
	if l.Server != "" {
		f.Text = l.Server + ": " + l.Error
	}
	if l.Refused {
		f.Severity = Fault
	}
	if l.Next != "" {
		f.Next = l.Next
	}
	return []Finding{f}
}

func unitFindings(s *Snapshot) (list []Finding) {
	if s.Unit == nil {
		return nil
	}
	for _, weak := range s.Unit.Weak {
		list = append(list, found(UnitWeak, Warning, weak))
	}
	return list
}
