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
		credentialIssue(), credentialList(), credentialShow())
}

func credentialIssue() *cobra.Command {
	var in server.CredentialIssueParams
	cmd := &cobra.Command{
		Use:   "issue TERMINAL",
		Short: "Order a terminal to get a credential for a service",
		Long: `Orders a terminal to make a key and to get a certificate for a service. The
terminal does so as soon as it is connected; its private key is made there and
is never here. With --wait the verb follows the order to its end.`,
		Example: "  kagimori-server credential issue nav-001 --service maps --wait\n  kagimori-server credential issue nav-001 --service maps --subject truck-7 --transfer never",
	}
	cmd.Flags().StringVar(&in.Service, "service", "", "service that it is for")
	cmd.Flags().StringVar(&in.Subject, "subject", "", "place that is registered at the service (default the terminal's name)")
	cmd.Flags().StringVar(&in.Transfer, "transfer", string(transport.TransferCopy), "what may happen to it when the terminal is replaced: copy, move or never")
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
		return verb.Print(cmd, p, func(w io.Writer) { fmt.Fprintf(w, "%s is ordered%s\n", p.Credential, waitingFor(p)) })
	case string(transport.CommandDone):
		return verb.Print(cmd, p, func(w io.Writer) {
			fmt.Fprintf(w, "%s: %s has its credential for %s\n", p.Credential, p.Terminal, p.Service)
		})
	}
	return control.Problemf(control.Refused, "see: kagimori-server terminal show "+string(p.Terminal), "%s did not get %s for %s: %s (%s)",
		p.Terminal, p.Credential, p.Service, orDefault(p.Detail, "it did not say why"), p.State)
}

func waitingFor(p server.OrderProgress) string {
	if p.Connected {
		return ": " + string(p.Terminal) + " is told to get it"
	}
	return ": " + string(p.Terminal) + " will be told when it connects"
}

func credentialList() *cobra.Command {
	var q listFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List credentials and who holds them",
		Long:    "Lists credentials with destination, holders, expiry, state, and what was done last.\nColumns: id, kind, service, subject, usage, state, expires, operation, operated;\nalso filters by terminal.",
		Example: "  kagimori-server credential list\n  kagimori-server credential list --where service=maps --where terminal=nav-001 --sort expires",
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
			credentialTable(w, list, "no credentials; order one with: kagimori-server credential issue TERMINAL --service NAME")
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
		if h.Active {
			list = append(list, string(h.Terminal))
		}
	}
	if len(list) == 0 && c.Ordered != "" {
		return "(" + string(c.Ordered) + ")"
	}
	return dash(names(list))
}

func credentialState(c server.CredentialInfo) verb.Cell {
	switch {
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

func credentialShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show a credential and who holds or held it",
		Long:    "Shows a credential with all that have it or had it, since when, and how they got it.",
		Example: "  kagimori-server credential show cr-abcdefghij",
		RunE: func(cmd *cobra.Command, args []string) error {
			var c server.CredentialInfo
			if err := ask(cmd, "CredentialShow", server.NameParams{Name: args[0]}, &c); err != nil {
				return err
			}
			return verb.Print(cmd, c, func(w io.Writer) {
				verb.Fields(w, "id", c.ID, "kind", c.Kind, "destination", c.Service, "subject", c.Subject, "usage", c.Usage, "transfer", c.Transfer,
					"chip only", c.ChipOnly, "certificate", dash(c.Serial), "expires", verb.Time(c.Expires), "state", credentialState(c),
					"operation", c.Operation, "operation date", verb.Time(c.Operated), "ordered from", dash(string(c.Ordered)))
				fmt.Fprintln(w, "\nHolders")
				t := verb.NewTable(w, "TERMINAL", "DEVICE", "SINCE", "ORIGIN", "FROM DEVICE", "STATE")
				for _, h := range c.Holders {
					source, state := "-", verb.Good("has it")
					if h.Source != nil {
						source = h.Source.Short()
					}
					if !h.Active {
						state = verb.Dim("ended")
					}
					t.Row(h.Terminal, h.Device.Short(), verb.Time(h.Since), h.Origin, source, state)
				}
				t.Flush("nobody yet")
			})
		},
	}
}
