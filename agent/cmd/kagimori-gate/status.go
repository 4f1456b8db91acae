package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/gate"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func statusVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how this gate is",
		Long: `Shows how this gate is: whether it admits terminals and why not, its own
certificate, the lists of revoked credentials and how old they are, how many
connections there are and how many were refused for which reason, and what to
do next.`,
		Example: "  kagimori-gate status\n  kagimori-gate status --json | jq .gate.open",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			var r gate.Report
			if err := c.Call(cmd.Context(), "com.kagimori.gate.Status", nil, &r); err != nil {
				return err
			}
			return verb.Print(cmd, r, func(w io.Writer) { showStatus(w, &r) })
		},
	}
}

func showStatus(w io.Writer, r *gate.Report) {
	g, a := &r.Gate, &r.Agent
	fields := []any{"gate", who(a), "admits", admits(g), "listens at", g.Listen, "service behind", g.Upstream}
	if c := g.Certificate; c != nil {
		fields = append(fields, "certificate", fmt.Sprintf("%s until %s", strings.Join(c.Names, ", "), verb.Time(c.Expires)))
	}
	for _, l := range g.Lists {
		fields = append(fields, "revoked", list(&l))
	}
	fields = append(fields, "connections", fmt.Sprintf("%d open, %d admitted since the start", g.Connections, g.Admitted),
		"requests", fmt.Sprintf("%d passed on", g.Passed))
	if len(g.Refused) > 0 {
		fields = append(fields, "refused", refused(g.Refused))
	}
	fields = append(fields, "keys", keys(a), "server", link(a), "clock", verb.Time(a.Clock.Now)+", "+a.Clock.Text)
	verb.Fields(w, fields...)
	for _, p := range g.Problems {
		fmt.Fprintf(w, "\n%s\n", p.Text)
		next(w, p.Next)
	}
	next(w, a.Keys.Next)
	if a.Kind != "" { // else the first problem has said it
		next(w, a.Link.Next)
	}
}

func next(w io.Writer, what string) {
	if what != "" {
		fmt.Fprintf(w, "  next: %s\n", what)
	}
}

func who(a *agent.Status) any {
	switch {
	case !a.Keys.Open:
		return verb.Warn("not known while the keys are not available")
	case a.Kind == "":
		return verb.Warn("not provisioned")
	}
	return fmt.Sprintf("%s of deployment %s, guards service %s", a.Terminal, a.Deployment, a.Service)
}

func admits(g *gate.Door) any {
	switch {
	case !g.Open:
		return verb.Bad("nobody")
	case len(g.Problems) > 0:
		return verb.Warn("terminals with a credential for " + string(g.Service) + "; but see below")
	}
	return verb.Good("terminals with a credential for " + string(g.Service))
}

func list(l *gate.ListStatus) any {
	if l.Number < 0 {
		return verb.Bad(fmt.Sprintf("by %s: number %d is announced and not here yet", l.Issuer, l.Announced))
	}
	age := time.Duration(l.AgeSeconds) * time.Second
	text := fmt.Sprintf("%d credentials by %s, list %d of %s, confirmed %s ago, good until %s", l.Revoked, l.Issuer, l.Number, verb.Time(l.Issued), age, verb.Time(l.Until))
	if l.Number < l.Announced || l.Problem != "" {
		return verb.Warn(text)
	}
	return text
}

// refused lists the reasons, the most frequent first.
func refused(by map[string]int64) string {
	reasons := slices.SortedFunc(maps.Keys(by), func(a, b string) int {
		if by[a] != by[b] {
			return int(by[b] - by[a])
		}
		return strings.Compare(a, b)
	})
	var text []string
	for _, reason := range reasons {
		text = append(text, fmt.Sprintf("%d %s", by[reason], reason))
	}
	return strings.Join(text, ", ")
}

func keys(a *agent.Status) any {
	if !a.Keys.Open {
		return verb.Bad("not available: " + a.Keys.Text)
	}
	return fmt.Sprintf("%s: %s", a.Keys.Level, a.Keys.Text)
}

func link(a *agent.Status) any {
	l := &a.Link
	text := string(l.State)
	if l.Server != "" {
		text += " " + l.Server
	}
	if l.Up() {
		return verb.Good(text + " since " + verb.Time(l.Since))
	}
	if l.Error != "" {
		text += ": " + l.Error
	}
	return verb.Warn(text)
}
