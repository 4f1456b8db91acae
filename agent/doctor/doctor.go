// Package doctor says what is wrong with a machine that keeps keys, what that
// leads to, and what to do. START HERE:
//
//   - class.go: the classes of findings with their exit codes; docs/doctor.md
//     and the help text are made of that table
//   - snapshot.go: what is looked at; whoever gathers it decides nothing
//   - examine.go, machine.go: findings from a snapshot, without any look elsewhere
//   - power.go: what would be lost if the power failed now
//   - unit.go, disk.go: reading the process's own confinement, and the disk
package doctor

import (
	"cmp"
	"slices"
	"sort"
	"strings"
)

// Severity is how bad a finding is.
type Severity string

// From bad to harmless.
const (
	Fault   Severity = "fault"   // something does not work
	Warning Severity = "warning" // it works, and will not, or protects less than it says
	Note    Severity = "note"    // worth knowing; the exit code stays 0
)

func (s Severity) rank() int { return slices.Index([]Severity{Fault, Warning, Note}, s) }

// A Finding is one thing that is wrong.
type Finding struct {
	Class    Class    `json:"class"`
	Severity Severity `json:"severity"`
	// Text is what was found here; Cause what that comes from in general.
	Text        string `json:"text"`
	Cause       string `json:"cause"`
	Consequence string `json:"consequence"`
	Next        string `json:"next"`
	Exit        int    `json:"exit"`
}

// A Report is what a doctor says.
type Report struct {
	Program  string `json:"program"`
	StateDir string `json:"state_dir,omitempty"`
	// Daemon: it was the running daemon that examined itself.
	Daemon   bool      `json:"daemon"`
	Healthy  bool      `json:"healthy"` // nothing worse than notes
	Exit     int       `json:"exit"`    // of the worst finding's class; 0 when healthy
	Findings []Finding `json:"findings"`
	// Power answers in words what would break if the power failed now.
	Power []string `json:"if_power_failed_now"`
	// Summary is the state of things in a line each.
	Summary []string `json:"summary"`
}

// Examine makes a report of a snapshot: worst findings first, those of one
// severity in the order of the classes.
func Examine(s *Snapshot) *Report {
	r := &Report{Program: s.Program, StateDir: s.StateDir, Daemon: s.Running, Findings: []Finding{}, Power: power(s), Summary: summary(s)}
	for _, look := range []func(*Snapshot) []Finding{
		daemonDown, storageFindings, chipFindings, counterFindings, bootFindings, storeFindings, diskFindings, clockFindings,
		certificateFindings, linkFindings, unitFindings, auditFindings, copyFindings,
	} {
		r.Add(look(s)...)
	}
	return r
}

// Add adds findings of classes that are not there yet, and judges anew.
func (r *Report) Add(more ...Finding) {
	for _, f := range more {
		f.Next = r.own(f.Next)
		if !slices.ContainsFunc(r.Findings, func(g Finding) bool { return g.Class == f.Class && g.Text == f.Text }) {
			r.Findings = append(r.Findings, f)
		}
	}
	sort.SliceStable(r.Findings, func(i, j int) bool {
		a, b := &r.Findings[i], &r.Findings[j]
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), cmp.Compare(a.Exit, b.Exit)) < 0
	})
	r.Exit = 0
	if len(r.Findings) > 0 && r.Findings[0].Severity != Note {
		r.Exit = r.Findings[0].Exit
	}
	r.Healthy = r.Exit == 0
}

// own has a step name this program's own verbs and unit, not the agent's.
func (r *Report) own(next string) string {
	if r.Program == "" {
		return next
	}
	return strings.NewReplacer("kagimori-server", "kagimori-server", "kagimori-gate", "kagimori-gate", "kagimori", r.Program).Replace(next)
}

// Has says whether a class was found.
func (r *Report) Has(c Class) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Class == c })
}

// found makes a finding of what stands in the table.
func found(c Class, severity Severity, text string) Finding {
	for _, i := range Classes() {
		if i.Class == c {
			return Finding{Class: c, Severity: severity, Text: text, Cause: i.Cause, Consequence: i.Consequence, Next: i.Next, Exit: i.Exit}
		}
	}
	return Finding{Class: c, Severity: severity, Text: text, Exit: 1}
}
