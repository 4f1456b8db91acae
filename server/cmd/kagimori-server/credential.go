package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func credentialVerbs() *cobra.Command {
	return verb.Group("credential", "Credentials: what terminals show to services",
		"A credential belongs to a place at a service, its subject. It outlives the\nterminals that hold it, and several may hold it after a copy.",
		credentialIssue(), credentialSet(), credentialRevoke(), credentialList(), credentialShow())
}

func credentialIssue() *cobra.Command {
	var in server.CredentialIssueParams
	cmd := &cobra.Command{
		Use:   "issue TERMINAL",
		Short: "Order a terminal to get a credential for a service",
		Long: `Orders a terminal to make a key and to get a certificate for a service. The
terminal does so as soon as it is connected; its private key is made there and
is never here. With --wait the verb follows the order to its end.

A credential that the terminal has already is issued anew, under the same id and
for the same subject, once it has expired or is in the last third of its life,
or when the terminal was enrolled with another device that lacks it. Nothing does
so by itself yet: watch EXPIRES in "credential list". The terminal makes a new
key and uses what it had until it has the new certificate. The old certificate is
not revoked: copies of it on other terminals are good until they expire, and are
issued anew one by one. To end it at once: credential revoke, then issue.

A gate's own certificate is issued anew in the same way: issue gate-SERVICE.`,
		Example: "  kagimori-server credential issue nav-001 --service maps --wait\n  kagimori-server credential issue nav-001 --service maps --subject truck-7 --transfer never",
	}
	cmd.Flags().StringVar(&in.Service, "service", "", "`SERVICE` that it is for")
	cmd.Flags().StringVar(&in.Subject, "subject", "", "`NAME` of the place that is registered at the service (default the terminal's name)")
	cmd.Flags().StringVar(&in.Transfer, "transfer", "", "what may happen to it when the terminal is replaced, `HOW` is copy, move (the old terminal gives it up) or never (default copy)")
	cmd.Flags().BoolVar(&in.ChipOnly, "chip-only", false, "the key must be in a chip")
	cmd.Flags().BoolVar(&in.Wait, "wait", false, "wait until the terminal has it, or says why not")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in.Terminal = args[0]
		if in.Service == "" {
			return control.Problemf(control.Usage, "name it: kagimori-server credential issue "+args[0]+" --service NAME", "--service is missing")
		}
		return issue(cmd, in)
	}
	return cmd
}

func issue(cmd *cobra.Command, in server.CredentialIssueParams) error {
	c, err := verb.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	progress := verb.NewProgress(cmd)
	notes := func(w io.Writer, p server.OrderProgress) {
		for _, n := range p.Notes {
			fmt.Fprintf(w, "Note: %s.\n", n)
		}
	}
	var p server.OrderProgress
	err = c.Stream(cmd.Context(), server.Interface+".CredentialIssue", in, func(raw json.RawMessage) error {
		if err := json.Unmarshal(raw, &p); err != nil {
			return err
		}
		if in.Wait && p.State == string(store.CommandPending) {
			return progress.Step(p, "%s is ordered%s", p.Credential, waitingFor(p))
		}
		return nil
	})
	progress.End()
	if err != nil {
		return err
	}
	switch p.State {
	case string(store.CommandPending):
		return verb.Print(cmd, p, func(w io.Writer) {
			fmt.Fprintf(w, "%s is ordered%s\n", p.Credential, waitingFor(p))
			notes(w, p)
		})
	case string(transport.CommandDone):
		return verb.Print(cmd, p, func(w io.Writer) {
			fmt.Fprintf(w, "%s: %s has its credential for %s%s\n", p.Credential, p.Terminal, p.Service, map[bool]string{true: ", issued anew"}[p.Renewal])
			notes(w, p)
		})
	}
	return control.Problemf(control.Refused, "see: kagimori-server credential show "+string(p.Credential), "%s did not get %s for %s: %s (%s)",
		p.Terminal, p.Credential, p.Service, orDefault(p.Detail, "it did not say why"), p.State)
}

func waitingFor(p server.OrderProgress) string {
	if p.Connected {
		return ": " + string(p.Terminal) + " is told to get it"
	}
	return ": " + string(p.Terminal) + " will be told when it connects"
}

func credentialRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a credential for good, whoever holds it",
		Long: `Revokes all certificates of a credential: every terminal that holds it, copies
too, is refused, and gates are told at once. Orders to get it are taken back. Its
place at the service is free again, for a new credential: credential issue.`,
		Example: "  kagimori-server credential revoke cr-abcdefghij",
		RunE: func(cmd *cobra.Command, args []string) error {
			var r server.CredentialRevoked
			if err := ask(cmd, "CredentialRevoke", server.NameParams{Name: args[0]}, &r); err != nil {
				return err
			}
			return verb.Print(cmd, r, func(w io.Writer) {
				again := r.Withdrawn
				if r.State == store.CredentialWithdrawn {
					fmt.Fprintf(w, "%s is withdrawn: %s had not got it for %s.\n", r.ID, dash(names(again)), r.Service)
				} else {
					again = append(r.Holders, again...)
					fmt.Fprintf(w, "%s is revoked: gates of %s are told to refuse it. It was held by: %s.\n", r.ID, r.Service, dash(names(r.Holders)))
				}
				if len(again) > 0 {
					fmt.Fprintf(w, "next: if a terminal is to have another, kagimori-server credential issue %s --service %s%s\n", again[0], r.Service, place(r, again[0]))
				}
			})
		},
	}
}

// place is how the same place at a service is asked for again.
func place(r server.CredentialRevoked, terminal transport.Name) string {
	if r.Subject == terminal {
		return ""
	}
	return " --subject " + string(r.Subject)
}

func credentialList() *cobra.Command {
	var q listFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List credentials and who holds them",
		Long:    "Lists credentials with destination, holders, expiry, state, and what was done last.\nColumns: id, kind, service, subject, usage, state, expires, operation, operated;\nalso filters by terminal. A state is ordered, active, refused, withdrawn, revoked,\nor as it is shown: in force, expired, held by nobody. Of those in force a key copy may\nhave left some in transit (given up, and not yet claimed by the new holder), or\nheld twice, although they were to move: see credential show.",
		Example: "  kagimori-server credential list\n  kagimori-server credential list --where service=maps --where terminal=nav-001 --sort expires\n  kagimori-server credential list --where state=expired",
	}
	q.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list := []server.CredentialInfo{}
		err := q.pages(cmd, func(in server.ListParams) (string, error) {
			var page server.CredentialPage
			err := ask(cmd, "CredentialList", in, &page)
			list = append(list, page.Credentials...)
			return page.Next, err
		})
		if err != nil {
			return err
		}
		return verb.Print(cmd, map[string]any{"credentials": list}, func(w io.Writer) {
			credentialTable(w, list, q.empty("no credentials; order one with: kagimori-server credential issue TERMINAL --service NAME"))
		})
	}
	return cmd
}

// credentialTable shows management records (req: L1).
func credentialTable(w io.Writer, list []server.CredentialInfo, empty string) {
	t := verb.NewTable(w, "ID", "KIND", "DESTINATION", "SUBJECT", "HOLDERS", "EXPIRES", "STATE", "OPERATION", "DATE")
	for _, c := range list {
		t.Row(c.ID, c.Kind, c.Service, c.Subject, holders(c), verb.Time(c.Expires), credentialState(c), c.Operation, verb.Time(c.Operated))
	}
	t.Flush(empty)
}

func holders(c server.CredentialInfo) string {
	var list []string
	for _, h := range c.Holders {
		switch h.State {
		case store.HoldingActive:
			list = append(list, string(h.Terminal))
		case store.HoldingTransit:
			list = append(list, fmt.Sprintf("(%s to %s)", h.Terminal, h.To))
		}
	}
	if len(list) == 0 && c.Ordered != "" {
		return "(" + string(c.Ordered) + ")"
	}
	return dash(names(list))
}

func credentialState(c server.CredentialInfo) verb.Cell {
	switch {
	case c.Conflict != "":
		return verb.Bad("held twice")
	case c.InForce && inTransit(c):
		return verb.Warn("in transit")
	case c.InForce:
		return verb.Good("in force")
	case c.State == store.CredentialOrdered:
		return verb.Warn(string(c.State))
	case c.State == store.CredentialActive && !c.Expires.After(time.Now()):
		return verb.Bad("expired")
	case c.State == store.CredentialActive:
		return verb.Warn("held by nobody")
	}
	return verb.Bad(string(c.State))
}
