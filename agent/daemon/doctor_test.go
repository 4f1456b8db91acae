package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/hsm"
)

func TestParseSince(t *testing.T) {
	now := time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]int64{
		"": 0, "24h": now.Add(-24 * time.Hour).Unix(), "-1h": now.Add(-time.Hour).Unix(),
		"2030-01-01": now.Add(-36 * time.Hour).Unix(), "2030-01-02T11:00:00Z": now.Add(-time.Hour).Unix(),
	} {
		if got, err := parseSince(s, now); got != want || err != nil {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"yesterday", "24", "2030-13-01"} {
		if _, err := parseSince(s, now); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

// What people see of a finding: all four answers.
func TestReportAsSeen(t *testing.T) {
	var b strings.Builder
	r := doctor.Examine(&doctor.Snapshot{Running: true, Open: true, Use: hsm.ErrAbsent})
	showReport(&b, r)
	for _, words := range []string{"chip-absent", "found", "cause", "so ", "next", "if the power failed now:"} {
		if !strings.Contains(b.String(), words) {
			t.Errorf("no %q in\n%s", words, b.String())
		}
	}
	b.Reset()
	showReport(&b, doctor.Examine(&doctor.Snapshot{Running: true, Open: true}))
	if !strings.HasPrefix(b.String(), "nothing is wrong\n") || strings.Count(b.String(), "\n") > 5 {
		t.Errorf("a healthy one:\n%s", b.String())
	}
}

func TestAuditAsSeen(t *testing.T) {
	var b strings.Builder
	showAudit(&b, &audit.Report{Break: &audit.Break{Seq: 7, Reason: "the entry was removed"}, Gaps: []audit.Gap{{After: 3, Before: 9}}})
	for _, words := range []string{"broken at entry 7: the entry was removed", "between epochs 3 and 9", "next: "} {
		if !strings.Contains(b.String(), words) {
			t.Errorf("no %q in\n%s", words, b.String())
		}
	}
}

func TestHealthAsSeen(t *testing.T) {
	var b strings.Builder
	showHealth(&b, &hsm.Health{Level: hsm.LevelTPM, RollbackProof: true, Notes: []string{"a note"}, Chip: &hsm.Chip{
		Maker: "IFX", Lockout: hsm.Lockout{Locked: true, Count: 3, Limit: 3, Recovery: 2 * time.Hour, Reset: 24 * time.Hour},
	}})
	for _, words := range []string{"IFX", "yes, one more try in 2h0m0s", "3 of 3", "locks the reset for 24h0m0s", "a note", "refused"} {
		if !strings.Contains(b.String(), words) {
			t.Errorf("no %q in\n%s", words, b.String())
		}
	}
}
