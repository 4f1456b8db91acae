package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport/control"
)

var now = time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)

// healthy is a terminal with nothing wrong; sick changes one thing about it.
func healthy() *Snapshot {
	n := uint64(7)
	return &Snapshot{
		Program: "kagimori", Running: true, Open: true,
		Health: &hsm.Health{Level: hsm.LevelTPM, RollbackProof: true, Chip: &hsm.Chip{Maker: "IBM ", Firmware: "1.2", Lockout: hsm.Lockout{Limit: 32, Recovery: 2 * time.Hour}}},
		Store:  &store.State{Epoch: 7, Counter: &n, RollbackProof: true, Bond: "chip", CopyFresh: true},
		Disk:   &Disk{Path: "/var/lib/kagimori", Free: 1 << 30, Total: 8 << 30, Type: "ext4", Options: []string{"rw", "relatime"}, Kernel: "6.1.0"},
		Unit:   &Unit{},
		Clock:  Time{System: now, Floor: now.Add(-time.Hour), Trusted: true, Plausible: true},
		Certificates: []Cert{
			{What: "this terminal's identity", Expires: now.Add(300 * 24 * time.Hour), Left: 300 * 24 * time.Hour, Life: 365 * 24 * time.Hour},
		},
		Link:  Link{Wanted: true, Up: true, Server: "mqtt.example:8883"},
		Audit: &audit.Report{Sound: true, Entries: 9, Anchored: 9, Epoch: 7, StoreEpoch: 7},
	}
}

func sick(change func(*Snapshot)) *Snapshot {
	s := healthy()
	change(s)
	return s
}

// closed is a daemon whose storage does not open for a reason, as the agent
// wraps it.
func closed(err error) *Snapshot {
	return sick(func(s *Snapshot) {
		s.Open, s.Health, s.Store, s.Audit, s.Certificates = false, nil, nil, nil, nil
		s.Storage = fmt.Errorf("open store /var/lib/kagimori/kagimori.db: %w", err)
	})
}

func TestHealthyTerminalSaysSo(t *testing.T) {
	r := Examine(healthy())
	if !r.Healthy || r.Exit != 0 || len(r.Findings) > 0 || len(r.Power) != 1 || r.Power[0] != "nothing would be lost" {
		t.Errorf("%+v", r)
	}
	if len(r.Summary) > 6 {
		t.Errorf("that is not brief: %q", r.Summary)
	}
}

// Every class is found, with its code, and with words for all four questions.
func TestEveryClassIsFound(t *testing.T) {
	cases := map[Class][]*Snapshot{
		ChipAbsent:    {closed(hsm.ErrAbsent), sick(func(s *Snapshot) { s.HealthErr = fmt.Errorf("examine TPM: %w", hsm.ErrAbsent) })},
		ChipBusy:      {closed(hsm.ErrBusy)},
		CountersTaken: {sick(func(s *Snapshot) { s.Health.Chip.Counters = 12 })},
		ChipSilent:    {closed(hsm.ErrTimeout), sick(func(s *Snapshot) { s.Use = fmt.Errorf("sign: %w", hsm.ErrTimeout) })},
		OwnerPassword: {closed(hsm.ErrOwnerAuth)},
		LockedOut: {closed(hsm.ErrLockout), sick(func(s *Snapshot) {
			s.Health.Chip.Lockout.Locked, s.Health.Chip.Lockout.Count = true, 32
		})},
		RootReplaced: {closed(store.ErrForeign), closed(hsm.ErrReplaced), closed(fmt.Errorf("%w (%w)", store.ErrForeign, hsm.ErrReplaced))},
		BootChanged:  {closed(&hsm.BootError{Changed: []int{4, 7}})},
		NotMeasured:  {sick(func(s *Snapshot) { s.Store.NotMeasured = true })},
		Passphrase:   {closed(hsm.ErrPassphrase)},
		CounterGone:  {closed(hsm.ErrCounter), sick(func(s *Snapshot) { s.Store.Counter, s.Store.Unprotected = nil, "no room" })},
		StoreDamaged: {closed(store.ErrDamaged), closed(store.ErrFailed)},
		StoreOlder:   {closed(store.ErrOlder)},
		StoreFallback: {sick(func(s *Snapshot) {
			s.Store.Fallback = &store.Fallback{At: now, Kept: "x.broken-1", Lost: "two results"}
		})},
		StoreRefused: {closed(store.ErrLocked), closed(store.ErrNewer), closed(hsm.ErrUnsafe), closed(fs.ErrPermission),
			closed(syscall.EROFS), sick(func(s *Snapshot) { s.Disk.Options = []string{"ro", "relatime"} })},
		DiskFull: {closed(store.ErrFull), closed(syscall.ENOSPC), closed(syscall.EDQUOT), sick(func(s *Snapshot) { s.Disk.Free = 0 }), sick(func(s *Snapshot) {
			s.Disk.Free = 30 << 20
		})},
		FlashRisk: {sick(func(s *Snapshot) { s.Disk.Type = "tmpfs" }), sick(func(s *Snapshot) { s.Disk.Type = "overlay" }), sick(func(s *Snapshot) { s.Disk.Type = "nfs4" }),
			sick(func(s *Snapshot) { s.Disk.Options, s.Disk.Kernel = []string{"rw", "fast_commit"}, "5.10.90-rt" })},
		Clock: {
			sick(func(s *Snapshot) { s.Clock = Time{System: time.Unix(0, 0), Floor: now} }),
			sick(func(s *Snapshot) { s.Clock = Time{System: now.AddDate(70, 0, 0), Floor: now} }),
			sick(func(s *Snapshot) { s.Clock.Off = -time.Hour }),
		},
		Certificate: {sick(func(s *Snapshot) { s.Certificates[0].Left = -time.Hour }), sick(func(s *Snapshot) { s.Certificates[0].Left = 10 * 24 * time.Hour })},
		Server: {sick(func(s *Snapshot) { s.Link = Link{Wanted: true, Error: "connection refused"} }), sick(func(s *Snapshot) {
			s.Link = Link{Wanted: true, Refused: true, Error: "not known"}
		})},
		UnitWeak: {sick(func(s *Snapshot) { s.Unit.Weak = []string{"LimitCORE=0 is not in force"} })},
		AuditBroken: {sick(func(s *Snapshot) { s.Audit.Sound, s.Audit.Break = false, &audit.Break{Seq: 3, Reason: "removed"} }), sick(func(s *Snapshot) {
			s.Audit.Gaps = []audit.Gap{{After: 1, Before: 3, Loss: true}, {After: 3, Before: 7}}
		})},
		CopyStale:  {sick(func(s *Snapshot) { s.Store.Unfinished = "the counter could not follow" }), sick(func(s *Snapshot) { s.Store.CopyFresh = false })},
		DaemonDown: {sick(func(s *Snapshot) { s.Running, s.Open = false, false })},
		CopyOpen:   {sick(func(s *Snapshot) { s.Held.Copies = []Copy{{Txn: "3f9a01c2", Open: time.Hour}} })},
		KeysStaged: {sick(func(s *Snapshot) { s.Held.Copies = []Copy{{Txn: "3f9a01c2", Open: time.Hour, Staged: 1}} })},
		KeysAway:   {sick(func(s *Snapshot) { s.Held.Copies = []Copy{{Txn: "3f9a01c2", Open: time.Hour, Away: 1}} })},
		KeysTwice:  {sick(func(s *Snapshot) { s.Held.Copies = []Copy{{Txn: "3f9a01c2", Twice: true}} })},
	}
	for _, c := range Classes() {
		if len(cases[c.Class]) == 0 {
			t.Errorf("nothing shows %s", c.Class)
		}
		for i, s := range cases[c.Class] {
			r := Examine(s)
			if len(r.Findings) == 0 || r.Findings[0].Class != c.Class || r.Exit != c.Exit || r.Healthy {
				t.Errorf("%s, case %d: exit %d, %+v", c.Class, i, r.Exit, r.Findings)
				continue
			}
			f := r.Findings[0]
			if f.Text == "" || f.Cause == "" || f.Consequence == "" || f.Next == "" || len(r.Power) == 0 {
				t.Errorf("%s, case %d: something is not said: %+v", c.Class, i, f)
			}
		}
	}
}

// What a finding says is what was found, not only its class.
func TestFindingsAreSpecific(t *testing.T) {
	for words, s := range map[string]*Snapshot{
		"PCRs [4 7]": closed(&hsm.BootError{Changed: []int{4, 7}}),
		"32 wrong tries, the limit is 32; one more try is taken in 2 hours": sick(func(s *Snapshot) {
			s.Health.Chip.Lockout.Locked, s.Health.Chip.Lockout.Count = true, 32
		}),
		"2 wrong tries are counted":   sick(func(s *Snapshot) { s.Health.Chip.Lockout.Count = 2 }),
		"kept as x.broken-1":          sick(func(s *Snapshot) { s.Store.Fallback = &store.Fallback{Kept: "x.broken-1", Lost: "two results"} }),
		"1970-01-01 00:00 UTC":        sick(func(s *Snapshot) { s.Clock = Time{System: time.Unix(0, 0), Floor: now} }),
		"expires in 10 days":          sick(func(s *Snapshot) { s.Certificates[0].Left = 10 * 24 * time.Hour }),
		"entry 3: removed":            sick(func(s *Snapshot) { s.Audit.Break = &audit.Break{Seq: 3, Reason: "removed"} }),
		"mqtt.example:8883: no route": sick(func(s *Snapshot) { s.Link = Link{Wanted: true, Server: "mqtt.example:8883", Error: "no route"} }),
	} {
		if r := Examine(s); len(r.Findings) == 0 || !strings.Contains(r.Findings[0].Text, words) {
			t.Errorf("no %q in %+v", words, r.Findings)
		}
	}
}

// Notes do not make a terminal sick; a fault comes before a warning, and the
// class that stands first in the table decides among faults.
func TestOrderAndExit(t *testing.T) {
	if r := Examine(sick(func(s *Snapshot) { s.Health.Chip.Lockout.Count = 1 })); !r.Healthy || r.Exit != 0 || len(r.Findings) != 1 {
		t.Errorf("%+v", r)
	}
	r := Examine(sick(func(s *Snapshot) {
		s.Store.NotMeasured = true // 27, a warning
		s.Disk.Free = 0            // 34, a fault
		s.Audit.Break = &audit.Break{Seq: 1, Reason: "x"}
	}))
	if len(r.Findings) != 3 || r.Findings[0].Class != DiskFull || r.Findings[1].Class != AuditBroken || r.Exit != 34 {
		t.Errorf("%+v", r.Findings)
	}
	r.Add(found(FlashRisk, Warning, "x"), found(FlashRisk, Warning, "x"))
	if len(r.Findings) != 4 || r.Exit != 34 || !r.Has(FlashRisk) || r.Has(Clock) {
		t.Errorf("%+v", r.Findings)
	}
}

// A next step is one of the program that says it.
func TestNextStepIsThisProgramsOwn(t *testing.T) {
	r := Examine(sick(func(s *Snapshot) {
		s.Program, s.Running, s.Open = "kagimori-gate", false, false
		s.Certificates[0].Left, s.Certificates[0].Next = 0, "kagimori-gate status; kagimori-server credential issue gate"
	}))
	for class, want := range map[Class]string{
		DaemonDown:  "start it: systemctl start kagimori-gate; why it stopped: journalctl -u kagimori-gate",
		Certificate: "kagimori-gate status; kagimori-server credential issue gate",
	} {
		if i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Class == class }); i < 0 || r.Findings[i].Next != want {
			t.Errorf("%s: %+v", class, r.Findings)
		}
	}
	// What was refused has its own step; the class has none.
	r = Examine(closed(control.Problemf(control.Storage, "chmod 600 it", "open secret: %w", hsm.ErrUnsafe)))
	if r.Findings[0].Next != "chmod 600 it" {
		t.Errorf("%+v", r.Findings[0])
	}
}

// What is said of a loss is what happened, with a step that fits.
func TestLossSaysItsWay(t *testing.T) {
	for way, words := range map[store.Way][3]string{
		store.WayCopy:      {"the broken file is kept as x", "second copy", "look at the disk"},
		store.WayAccepted:  {"the file that was there is kept as x", "an administrator accepted", "goes away then"},
		store.WayRecovered: {"lost: two results", "was recovered", "goes away then"},
	} {
		f := Examine(sick(func(s *Snapshot) {
			s.Store.Fallback = &store.Fallback{At: now, Kept: "x", Lost: "two results", Way: way}
		})).Findings[0]
		if f.Class != StoreFallback || !strings.Contains(f.Text, words[0]) || !strings.Contains(f.Cause, words[1]) || !strings.Contains(f.Next, words[2]) {
			t.Errorf("%s: %+v", way, f)
		}
		if way != store.WayCopy && strings.Contains(f.Text+f.Cause+f.Next, "copy") {
			t.Errorf("%s tells of a copy: %+v", way, f)
		}
	}
}

// A gap is told as one; after a loss that the log tells of it is no fault.
func TestGapIsNoContradiction(t *testing.T) {
	r := Examine(sick(func(s *Snapshot) { s.Audit.Gaps = []audit.Gap{{After: 3, Before: 7, Loss: true}} }))
	if !r.Healthy || len(r.Findings) != 1 || r.Findings[0].Severity != Note || !strings.Contains(r.Findings[0].Cause, "gap") || strings.Contains(r.Findings[0].Cause, "contradict") {
		t.Errorf("%+v", r)
	}
	r = Examine(sick(func(s *Snapshot) { s.Audit.Gaps = []audit.Gap{{After: 3, Before: 7}} }))
	if r.Exit != 40 || !strings.Contains(r.Findings[0].Cause, "gap") || !strings.Contains(r.Findings[0].Text, "epochs 3 and 7") {
		t.Errorf("%+v", r)
	}
}

func TestSameTroubleIsToldOnce(t *testing.T) {
	r := Examine(sick(func(s *Snapshot) {
		s.Use, s.HealthErr = fmt.Errorf("use: %w", hsm.ErrAbsent), fmt.Errorf("examine: %w", hsm.ErrAbsent)
	}))
	if len(r.Findings) != 1 {
		t.Errorf("%+v", r.Findings)
	}
	if c := ClassOf(errors.New("something new")); c == "" {
		t.Error("an unknown error has no class")
	}
}

func TestOpenCopiesAreFound(t *testing.T) {
	for class, c := range map[Class]Copy{
		CopyOpen:   {Text: "under way", Open: time.Hour},
		KeysStaged: {Text: "waits", Open: time.Hour, Staged: 2},
		KeysAway:   {Text: "away", Open: time.Hour, Away: 2},
		KeysTwice:  {Text: "twice", Twice: true},
	} {
		c.Txn, c.Next = "3f9a01c2", "kagimori keycopy show 3f9a01c2"
		r := Examine(sick(func(s *Snapshot) { s.Held.Copies = []Copy{c} }))
		if len(r.Findings) != 1 || r.Findings[0].Class != class || r.Healthy || !strings.Contains(r.Findings[0].Text, c.Text) || r.Findings[0].Next != c.Next {
			t.Errorf("%s: %+v", class, r.Findings)
		}
		c.Open = time.Minute // just begun
		r = Examine(sick(func(s *Snapshot) { s.Held.Copies = []Copy{c} }))
		if healthy := class != KeysTwice; r.Healthy != healthy {
			t.Errorf("%s, just begun: healthy %v", class, r.Healthy)
		}
	}
}

func TestPower(t *testing.T) {
	for words, change := range map[string]func(*Snapshot){
		"after the start nothing opens":           func(s *Snapshot) { s.Use = hsm.ErrAbsent },
		"operator code that stands would be lost": func(s *Snapshot) { s.Held.Offer = true },
		"all of its keys":                         func(s *Snapshot) { s.Held.Copying = true },
		"count it as a wrong one":                 func(s *Snapshot) { s.Held.PIN = true },
		"2 results of commands":                   func(s *Snapshot) { s.Held.Results = 2 },
		"1 credential is asked for":               func(s *Snapshot) { s.Held.Requested = 1 },
		"1 credential is not reported":            func(s *Snapshot) { s.Held.Unreported = 1 },
		"1 key copy is not reported":              func(s *Snapshot) { s.Held.Untold = 1 },
		"1 key copy is open":                      func(s *Snapshot) { s.Held.Copies = []Copy{{Txn: "3f9a01c2"}} },
		"second copy of the store":                func(s *Snapshot) { s.Store.CopyFresh = false },
		"unless the counter file":                 func(s *Snapshot) { s.Store.RollbackProof, s.Health.Level = false, hsm.LevelFile },
		"taken for good":                          func(s *Snapshot) { s.Store.RollbackProof, s.Store.Counter = false, nil },
		"nothing is open":                         func(s *Snapshot) { s.Open = false },
		"the daemon does not run":                 func(s *Snapshot) { s.Running = false },
	} {
		if got := strings.Join(Examine(sick(change)).Power, "\n"); !strings.Contains(got, words) {
			t.Errorf("no %q in %q", words, got)
		}
	}
}
