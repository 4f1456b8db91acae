package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// Audit holds the verbs about the audit log.
func (p Program) Audit() *cobra.Command {
	return verb.Group("audit", "The log of what happened to keys",
		`The log of what happened to the keys of this machine. Each entry holds the hash of
the one before, and key storage signs the last one after each change of keys.`, p.listAudit(), p.verifyAudit())
}

func (p Program) listAudit() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List what happened to keys",
		Long:    "Lists the audit log, oldest entries first. A time of \"-\" means that the clock was\nnot to be believed.",
		Example: fmt.Sprintf("  %[1]s audit list\n  %[1]s audit list --since 24h --kind copy-failed", p.Name),
	}
	since := cmd.Flags().String("since", "", "only later than this `TIME`: 2026-01-31, 2026-01-31T12:00:00Z, or a span such as 24h")
	earlier := cmd.Flags().Bool("earlier", false, "the logs of stores that were taken over by recovery, as they were")
	kind := cmd.Flags().String("kind", "", "only entries of this `KIND`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		in := agent.AuditParams{Kind: *kind, Earlier: *earlier}
		if in.Earlier && (*since != "" || *kind != "") {
			return control.Problemf(control.Usage, "ask for all of it", "--earlier goes with neither --since nor --kind")
		}
		var err error
		if in.Since, err = parseSince(*since, time.Now()); err != nil {
			return err
		}
		c, err := verb.Dial(cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		all := agent.AuditPage{Entries: []audit.Line{}}
		err = c.Stream(cmd.Context(), p.Interface+".AuditList", in, func(raw json.RawMessage) error {
			var page agent.AuditPage
			err := json.Unmarshal(raw, &page)
			all.Entries = append(all.Entries, page.Entries...)
			return err
		})
		if err != nil {
			return err
		}
		return verb.Print(cmd, all, func(w io.Writer) {
			t := verb.NewTable(w, "SEQ", "TIME", "KIND", "SUBJECT", "DETAIL")
			for _, l := range all.Entries {
				t.Row(l.Seq, verb.Time(l.Time), l.Kind, l.Subject, l.Detail)
			}
			t.Flush("no entries")
		})
	}
	return cmd
}

// parseSince reads a date, a time or a span before now; "" is 0.
func parseSince(s string, now time.Time) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d.Abs()).Unix(), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.Unix(), nil
		}
	}
	return 0, control.Problemf(control.Usage, "write 2026-01-31, 2026-01-31T12:00:00Z, or a span such as 24h", "%q is no time", s)
}

func (p Program) verifyAudit() *cobra.Command {
	code := 0
	for _, c := range doctor.Classes() {
		if c.Class == doctor.AuditBroken {
			code = c.Exit
		}
	}
	return &cobra.Command{
		Use: "verify", Short: "Verify the audit log",
		Long: fmt.Sprintf(`Reads the whole audit log and compares it with what key storage has signed. It
says where the first break is, and since when the log is anchored. Entries after
the last anchor are protected by their chain alone.

With --json, proof is the last anchor for a foreign eye: openssl verifies it.

  %4d  the log is sound (look at the gaps, if it names any)
  %4d  it is not`, 0, code),
		Example: fmt.Sprintf("  %[1]s audit verify\n  %[1]s audit verify --json | jq -r .proof.message | base64 -d > message", p.Name),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			var r audit.Report
			if err := c.Call(cmd.Context(), p.Interface+".AuditVerify", nil, &r); err != nil {
				return err
			}
			if err := verb.Print(cmd, r, func(w io.Writer) { showAudit(w, &r) }); err != nil || r.Sound {
				return err
			}
			return verb.Exit(code)
		},
	}
}

func showAudit(w io.Writer, r *audit.Report) {
	state := verb.Good("sound")
	if r.Break != nil {
		state = verb.Bad(fmt.Sprintf("broken at entry %d: %s", r.Break.Seq, r.Break.Reason))
	}
	anchored := "nothing yet"
	if r.Anchored > 0 {
		anchored = fmt.Sprintf("up to entry %d, at epoch %d of the store (now %d), %s", r.Anchored, r.Epoch, r.StoreEpoch, verb.Time(r.AnchoredAt))
	}
	verb.Fields(w, "log", state, "entries", fmt.Sprintf("%d, from %d to %d", r.Entries, r.First, r.Last), "anchored", anchored,
		"anchored since", verb.Time(r.Since), "not anchored", r.Unanchored)
	for _, g := range r.Gaps {
		why := "key storage could not sign then, or the log was cut back"
		if g.Loss {
			why = "the store lost them, as the log tells"
		}
		fmt.Fprintf(w, "  a gap: nothing was signed between epochs %d and %d: %s\n", g.After, g.Before, why)
	}
	if r.Break != nil {
		fmt.Fprintln(w, "  next: keep the state directory for inspection; keys go on working")
	}
}
