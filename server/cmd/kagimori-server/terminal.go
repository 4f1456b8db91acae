package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func terminalVerbs() *cobra.Command {
	return verb.Group("terminal", "Terminals: the devices that hold credentials",
		"A terminal is a name that the server gives to a device. It is expected from the\nmoment that its bundle is made, enrolled when its device has proven that it has\nthat bundle, and refused everywhere once it is removed.",
		terminalAdd(), terminalList(), terminalShow(), terminalRemove(), terminalReenroll())
}

func terminalAdd() *cobra.Command {
	var group, out string
	var attest bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Expect a new terminal and make its bundle",
		Long: `Adds a terminal and writes its bundle, a file that tells a device who it is and
whom to trust. The bundle is sealed under a passphrase that is shown once. Who
has both can become this terminal: send them by different ways.

With --attest it can enroll only if it proves that its keys are in a TPM whose
maker is among ek_roots in the server's configuration. Its bundle then has no
security code: it gets that at enrollment, wrapped so that it opens in this one
chip and never comes out. A spare bundle cannot do so: a box on the shelf must
copy keys with no server in reach, so its code must be in the bundle.`,
		Example: "  kagimori-server terminal add nav-001\n  kagimori-server terminal add nav-001 --attest\n  kagimori-server terminal add nav-001 --group default --out /media/usb/nav-001.bundle",
	}
	cmd.Flags().StringVar(&group, "group", "", "`GROUP` whose security code it gets (default "+string(server.DefaultGroup)+")")
	cmd.Flags().BoolVar(&attest, "attest", false, "it must prove a TPM to enroll, and gets the security code then")
	outFlag(cmd, &out, "NAME.bundle")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return makeBundle(cmd, "TerminalAdd", orDefault(out, args[0]+".bundle"), func(key string) any {
			return server.TerminalAddParams{Name: args[0], Group: group, Attest: attest, ReplyKey: key}
		})
	}
	return cmd
}

func terminalReenroll() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "reenroll NAME",
		Short: "Let a terminal enroll with another device, and make its new bundle",
		Long: `Makes a new bundle for a terminal whose device was exchanged or erased, and
refuses its identity so far: a connection that is open is cut off. Bundles made
earlier are no longer good. What the earlier device holds stays in force.
A terminal that was removed is expected again.`,
		Example: "  kagimori-server terminal reenroll nav-001 --out new.bundle",
	}
	outFlag(cmd, &out, "NAME.bundle")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return makeBundle(cmd, "TerminalReenroll", orDefault(out, args[0]+".bundle"), func(key string) any {
			return server.TerminalReenrollParams{Name: args[0], ReplyKey: key}
		})
	}
	return cmd
}

func orDefault(s, byDefault string) string {
	if s == "" {
		return byDefault
	}
	return s
}

func terminalList() *cobra.Command {
	var q listFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List terminals and gates",
		Long:    "Lists terminals and gates, removed ones too.\nColumns: name, kind, group, state, created, seen; also filters by service. A kind is\nterminal or gate, a state expected, enrolled or removed.",
		Example: "  kagimori-server terminal list\n  kagimori-server terminal list --where state=enrolled --sort seen --reverse",
	}
	q.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list := []server.TerminalInfo{}
		err := q.pages(cmd, func(in server.ListParams) (string, error) {
			var page server.TerminalPage
			err := ask(cmd, "TerminalList", in, &page)
			list = append(list, page.Terminals...)
			return page.Next, err
		})
		if err != nil {
			return err
		}
		return verb.Print(cmd, map[string]any{"terminals": list}, func(w io.Writer) {
			t := verb.NewTable(w, "NAME", "KIND", "GROUP", "STATE", "DEVICE", "KEY STORAGE", "LAST SEEN")
			for _, x := range list {
				seen := any(verb.Time(x.Seen))
				if x.Connected {
					seen = verb.Good("connected")
				}
				storage, _ := x.Storage()
				t.Row(x.Name, x.Kind, x.Group, terminalState(x.State), short(x.Device), storage, seen)
			}
			t.Flush(q.empty("no terminals; add one with: kagimori-server terminal add NAME"))
		})
	}
	return cmd
}

func terminalState(s store.TerminalState) verb.Cell {
	switch s {
	case store.TerminalEnrolled:
		return verb.Good(string(s))
	case store.TerminalRemoved:
		return verb.Bad(string(s))
	}
	return verb.Warn(string(s))
}

// short is enough of a device id for a person.
func short(device string) string { return dash(device[:min(len(device), 12)]) }

func dash(s string) string { return orDefault(s, "-") }

func terminalShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a terminal, what it holds and what it is told to do",
		Long:    "Shows a terminal with its device and identity certificate, the credentials that\nit holds, and the commands that it has not answered yet.",
		Example: "  kagimori-server terminal show nav-001",
		RunE: func(cmd *cobra.Command, args []string) error {
			var d server.TerminalDetail
			if err := ask(cmd, "TerminalShow", server.NameParams{Name: args[0]}, &d); err != nil {
				return err
			}
			return verb.Print(cmd, d, func(w io.Writer) { showTerminal(w, d) })
		},
	}
}

func showTerminal(w io.Writer, d server.TerminalDetail) {
	x := d.Terminal
	_, storage := x.Storage()
	verb.Fields(w, "name", x.Name, "kind", x.Kind, "group", x.Group, "service", dash(string(x.Service)), "state", terminalState(x.State),
		"connected", x.Connected, "device", dash(x.Device), "key storage", storage, "created", verb.Time(x.Created),
		"enrolled", verb.Time(x.Enrolled), "last connected", verb.Time(x.Seen), "identity", dash(d.Serial), "identity expires", verb.Time(d.Expires))
	fmt.Fprintln(w, "\nHolds")
	credentialTable(w, d.Holds, "nothing")
	fmt.Fprintln(w, "\nIs told to")
	t := verb.NewTable(w, "COMMAND", "KIND", "CREDENTIAL", "SINCE")
	for _, c := range d.Pending {
		t.Row(c.ID, c.Kind, dash(string(c.Credential)), verb.Time(c.Created))
	}
	t.Flush("nothing")
}

func terminalRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Refuse a terminal from now on, and what only it held",
		Long: `Removes a terminal: its identity is revoked and its connection cut off, its
commands are withdrawn, its holdings end. Credentials that nobody else holds are
revoked, and gates told so. One that another terminal holds too, after a copy,
stays in force; then the removed box still has that key until it expires, or
until you end it for both: credential revoke, then issue.`,
		Example: "  kagimori-server terminal remove nav-001",
		RunE: func(cmd *cobra.Command, args []string) error {
			var r server.TerminalRemoved
			if err := ask(cmd, "TerminalRemove", server.NameParams{Name: args[0]}, &r); err != nil {
				return err
			}
			return verb.Print(cmd, r, func(w io.Writer) {
				if r.Enrolled {
					fmt.Fprintf(w, "%s is removed: its identity is revoked and its connection cut off.\n", r.Name)
				} else {
					fmt.Fprintf(w, "%s is removed: it had not enrolled, and its bundle is no longer good.\n", r.Name)
				}
				if len(r.Revoked) > 0 {
					fmt.Fprintf(w, "Revoked, since nobody else had it: %s.\n", names(r.Revoked))
				}
				if len(r.Withdrawn) > 0 {
					fmt.Fprintf(w, "Withdrawn before it was issued: %s.\n", names(r.Withdrawn))
				}
				for _, k := range r.Kept {
					if k.Expires.IsZero() {
						fmt.Fprintf(w, "Kept for %s: %s; what %s had of it is refused.\n", names(k.Holders), k.ID, r.Name)
					}
				}
				for _, warning := range r.Warnings {
					fmt.Fprintf(w, "Note: %s.\n", warning)
				}
				for _, k := range r.Kept {
					if k.Next != "" {
						fmt.Fprintf(w, "next: %s\n", k.Next)
					}
				}
			})
		},
	}
}

func names[T ~string](list []T) string {
	var s []string
	for _, n := range list {
		s = append(s, string(n))
	}
	return strings.Join(s, ", ")
}
